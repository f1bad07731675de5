'use strict';

// Uploads into a workspace, one after another. Large ones are sent in parts by tus 1.0.0, and go on where they broke off:
// when the network is back, and after the page was left, when the same file is chosen again.
(() => {
  const body = document.body;
  const upload = document.getElementById('upload');
  const list = document.getElementById('uploads');
  const said = document.getElementById('upload-said');
  const input = document.getElementById('files-input');
  const unpack = document.getElementById('unpack');
  const large = 8 * 2 ** 20;
  const part = 32 * 2 ** 20;
  const longestPause = 30; // seconds
  const passing = [0, 409, 429, 502, 503, 504]; // statuses after which it goes on; 0: no answer
  const tus = { 'Tus-Resumable': '1.0.0' };
  const uploads = `${upload.dataset.to}/uploads`;
  let queue = Promise.resolve();
  upload.hidden = false;

  function ask(item, method, address, headers = {}, content = null) {
    return new Promise((done) => {
      const request = new XMLHttpRequest();
      request.open(method, address);
      request.setRequestHeader('X-CSRF-Token', body.dataset.csrf);
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      request.upload.addEventListener('progress', (event) => { item.bar.value = item.offset + event.loaded; });
      request.addEventListener('loadend', () => done(request));
      item.request = request;
      request.send(content);
    });
  }

  const base64 = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

  // until so many seconds are over, or the network is back
  function pause(seconds) {
    return new Promise((done) => {
      setTimeout(done, seconds * 1000);
      addEventListener('online', done, { once: true });
    });
  }

  async function begin(item, path, file) {
    const fingerprint = `${file.name} ${file.size} ${file.lastModified}`.slice(0, 200);
    const known = await ask(item, 'GET', uploads);
    if (known.status !== 200) return known;
    const found = JSON.parse(known.responseText).uploads.find((one) => one.path === path && one.bytes === file.size
      && one.fingerprint === fingerprint);
    if (found) {
      item.place = `${uploads}/${found.id}`;
      item.offset = found.offset;
      return null;
    }
    const told = [['fingerprint', fingerprint], ...(path ? [['path', path]] : [])];
    const metadata = told.map(([key, value]) => `${key} ${base64(value)}`).join(',');
    const made = await ask(item, 'POST', uploads, { ...tus, 'Upload-Length': file.size, 'Upload-Metadata': metadata });
    if (made.status !== 201) return made;
    item.place = made.getResponseHeader('Location');
    item.offset = 0;
    return null;
  }

  async function next(item, file) {
    const headers = { ...tus, 'Content-Type': 'application/offset+octet-stream', 'Upload-Offset': item.offset };
    const answer = await ask(item, 'PATCH', item.place, headers, file.slice(item.offset, item.offset + part));
    if (answer.status !== 204) return answer;
    item.offset = Number(answer.getResponseHeader('Upload-Offset'));
    item.over = item.offset === file.size;
    return null;
  }

  // what failed for good, or null
  async function sendInParts(item, path, file) {
    let seconds = 1;
    while (!item.stopped && !item.over) {
      const failed = item.place ? await next(item, file) : await begin(item, path, file);
      if (failed === null) {
        seconds = 1;
        item.label.textContent = item.name;
        continue;
      }
      if (item.stopped || !passing.includes(failed.status)) return failed;
      item.label.textContent = `${item.name}: ${upload.dataset.waits}`;
      await pause(seconds);
      seconds = Math.min(2 * seconds, longestPause);
      if (!item.place) continue;
      const come = await ask(item, 'HEAD', item.place, tus);
      if (come.status === 200) item.offset = Number(come.getResponseHeader('Upload-Offset'));
      else if (come.status === 404) item.place = '';
    }
    return null;
  }

  async function sendWhole(item, path, file) {
    const parts = path.split('/').map(encodeURIComponent).join('/');
    const address = path ? `${upload.dataset.to}/files/${parts}` : upload.dataset.to;
    const answer = await ask(item, 'PUT', address, { 'Content-Type': 'application/octet-stream' }, file);
    return answer.status === 200 ? null : answer;
  }

  function show(name, size) {
    const item = { name, place: '', offset: 0, stopped: false, over: false, request: null };
    item.line = document.createElement('li');
    item.label = document.createElement('span');
    item.bar = document.createElement('progress');
    const stop = document.createElement('button');
    item.label.textContent = name;
    item.bar.max = size || 1;
    item.bar.value = 0;
    item.bar.setAttribute('aria-label', name);
    stop.type = 'button';
    stop.className = 'plain';
    stop.textContent = upload.dataset.cancel;
    stop.addEventListener('click', () => {
      item.stopped = true;
      item.request?.abort();
      item.line.remove();
      if (item.place) ask(item, 'DELETE', item.place, tus);
    });
    item.line.append(item.label, item.bar, stop);
    list.append(item.line);
    return item;
  }

  function send(path, file) {
    const item = show(path, file.size);
    queue = queue.then(async () => {
      if (item.stopped) return;
      const target = unpack.checked ? '' : path;
      const failed = await (file.size < large ? sendWhole : sendInParts)(item, target, file);
      if (item.stopped) return;
      if (failed === null) {
        said.textContent = `${path} ${upload.dataset.done}`;
        item.line.remove();
        return;
      }
      let reason = body.dataset.failed;
      try { reason = JSON.parse(failed.responseText).detail; } catch { /* it was no answer of the service's */ }
      item.label.textContent = said.textContent = `${path} ${upload.dataset.stopped}: ${reason}`;
      item.line.replaceChildren(item.label);
    });
  }

  function sendAll(files) {
    for (const [path, file] of files) send(path, file);
    const shown = { target: '#files', select: '#files', swap: 'outerHTML' };
    queue = queue.then(() => htmx.ajax('GET', upload.dataset.page, shown));
  }

  // files of a folder that was dropped, with their paths in it
  async function within(entry, before) {
    if (entry.isFile) {
      const file = await new Promise((done, failed) => entry.file(done, failed));
      return [[before + file.name, file]];
    }
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) return found;
      for (const inner of some) found.push(...await within(inner, `${before}${entry.name}/`));
    }
  }

  input.addEventListener('change', () => {
    sendAll([...input.files].map((file) => [file.name, file]));
    input.value = '';
  });
  upload.addEventListener('dragover', (event) => { event.preventDefault(); upload.classList.add('over'); });
  upload.addEventListener('dragleave', () => upload.classList.remove('over'));
  upload.addEventListener('drop', async (event) => {
    event.preventDefault();
    upload.classList.remove('over');
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    const files = [];
    // one folder is the workspace itself, as in an archive
    const alone = entries.length === 1 && entries[0].isDirectory;
    for (const entry of entries) files.push(...await within(entry, ''));
    sendAll(files.map(([path, file]) => [alone ? path.slice(path.indexOf('/') + 1) : path, file]));
  });
})();
