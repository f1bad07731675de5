'use strict';

(() => {
  const body = document.body;
  const notice = document.getElementById('notice');

  function tell(text) {
    notice.textContent = text;
    notice.hidden = false;
    setTimeout(() => { notice.hidden = true; }, 8000);
  }

  // a part that cannot be fetched is fetched again in its time; a click that fails is told
  for (const name of ['htmx:responseError', 'htmx:sendError']) {
    body.addEventListener(name, (event) => {
      if (event.detail.requestConfig?.triggeringEvent?.type === 'click') tell(body.dataset.failed);
    });
  }

  body.addEventListener('submit', (event) => {
    const question = event.submitter?.dataset.sure;
    if (question && !window.confirm(question)) event.preventDefault();
  });

  for (const select of document.querySelectorAll('select[data-submit]')) {
    select.addEventListener('change', () => select.form.requestSubmit());
  }

  for (const button of document.querySelectorAll('button[data-copy]')) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener('click', async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      tell(button.dataset.copied);
    });
  }

  // uploads: one after another, each with its progress
  const upload = document.getElementById('upload');
  if (!upload) return;
  const list = document.getElementById('uploads');
  const said = document.getElementById('upload-said');
  const input = document.getElementById('files-input');
  const unpack = document.getElementById('unpack');
  upload.hidden = false;
  let queue = Promise.resolve();

  function send(path, file) {
    const item = document.createElement('li');
    const label = document.createElement('span');
    const bar = document.createElement('progress');
    const stop = document.createElement('button');
    label.textContent = path;
    bar.max = file.size || 1;
    bar.value = 0;
    bar.setAttribute('aria-label', path);
    stop.type = 'button';
    stop.className = 'plain';
    stop.textContent = upload.dataset.cancel;
    item.append(label, bar, stop);
    list.append(item);
    const request = new XMLHttpRequest();
    let stopped = false;
    stop.addEventListener('click', () => { stopped = true; request.abort(); item.remove(); });
    queue = queue.then(() => stopped ? null : new Promise((done) => {
      const whole = unpack.checked;
      const parts = path.split('/').map(encodeURIComponent).join('/');
      request.open('PUT', whole ? upload.dataset.to : `${upload.dataset.to}/files/${parts}`);
      request.setRequestHeader('X-CSRF-Token', body.dataset.csrf);
      request.setRequestHeader('Content-Type', 'application/octet-stream');
      request.upload.addEventListener('progress', (event) => { bar.value = event.loaded; });
      request.addEventListener('loadend', () => {
        if (request.status === 200) {
          said.textContent = `${path} ${upload.dataset.done}`;
          item.remove();
        } else if (!stopped) {
          let reason = '';
          try { reason = JSON.parse(request.responseText).detail; } catch { reason = body.dataset.failed; }
          label.textContent = said.textContent = `${path} ${upload.dataset.stopped}: ${reason}`;
          bar.remove();
          stop.remove();
        }
        done();
      });
      request.send(file);
    }));
  }

  function begin(files) {
    for (const [path, file] of files) send(path, file);
    queue = queue.then(() => htmx.ajax('GET', upload.dataset.page, { target: '#files', select: '#files', swap: 'outerHTML' }));
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
    begin([...input.files].map((file) => [file.name, file]));
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
    begin(files.map(([path, file]) => [alone ? path.slice(path.indexOf('/') + 1) : path, file]));
  });
})();
