'use strict';

// The log and the curves of a job, from the API's streams. What comes is text and numbers and is never read as HTML.
(() => {
  const log = document.getElementById('log');
  const follow = document.getElementById('follow');
  const mostCharacters = 2 ** 20; // that the page keeps
  const fullPart = 2 ** 15; // characters of a part, from which on its line is the last one
  let kept = log.textContent.length;

  // whole lines in parts of their own: those out of sight are not laid out (`content-visibility`)
  function append(piece) {
    let text = piece.slice(-mostCharacters);
    kept += text.length;
    while (text) {
      let part = log.lastElementChild;
      if (!part || (part.textContent.length >= fullPart && part.textContent.endsWith('\n'))) {
        part = document.createElement('div');
        log.append(part);
      }
      const line = text.indexOf('\n', Math.max(fullPart - part.textContent.length, 0));
      const end = line < 0 ? text.length : line + 1;
      part.append(text.slice(0, end));
      text = text.slice(end);
    }
    while (kept > mostCharacters && log.childNodes.length > 1) {
      kept -= log.firstChild.textContent.length;
      log.firstChild.remove();
    }
    if (follow.checked) log.scrollTop = log.scrollHeight;
  }

  function ended() {
    const state = document.getElementById('state');
    if (state) htmx.trigger(state, 'ended');
  }

  // The browser goes on by itself where a connection broke off; what the service refuses is asked for again later.
  // A page that nobody sees holds no connection: over HTTP/1.1 a browser has six for all of them.
  function listen(address, take) {
    let last = '';
    let over = false;
    let source = null;
    function connect() {
      if (over || document.hidden || (source && source.readyState !== EventSource.CLOSED)) return;
      const url = new URL(address, location.href);
      if (last) url.searchParams.set('offset', last);
      source = new EventSource(url);
      source.addEventListener('message', (event) => {
        last = event.lastEventId;
        take(JSON.parse(event.data));
      });
      source.addEventListener('end', () => {
        over = true;
        source.close();
        ended();
      });
      source.addEventListener('error', () => {
        if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
      });
    }
    document.addEventListener('visibilitychange', () => {
      if (document.hidden) source?.close();
      else connect();
    });
    addEventListener('pagehide', () => source?.close());
    connect();
  }

  if (follow.checked) log.scrollTop = log.scrollHeight;
  // the page has the end of the log already: the stream begins where that began
  if (!('ended' in log.dataset)) {
    let first = true;
    listen(log.dataset.from, (text) => {
      if (first) {
        log.replaceChildren();
        kept = 0;
        first = false;
      }
      append(text);
    });
  }

  const section = document.getElementById('curves');
  const plots = document.getElementById('plots');
  const stage = document.getElementById('stage');
  const epochs = [];
  const measures = new Map(); // name -> values, one an epoch
  const charts = new Map(); // loss, auc, ... -> uPlot
  const colours = ['--c1', '--c0', '--c2', '--c3'];
  let drawing = 0;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const family = (name) => name.replace(/^val_/, '');

  function chart(kind, names) {
    const holder = document.createElement('div');
    holder.className = 'plot';
    holder.dataset.measure = kind;
    plots.append(holder);
    const axis = { stroke: () => colour('--soft'), grid: { stroke: () => colour('--rule'), width: 1 }, ticks: { stroke: () => colour('--rule'), width: 1 } };
    const series = names.map((name, place) => ({
      label: name,
      stroke: () => colour(colours[place % colours.length]),
      width: 2,
      dash: name.startsWith('val_') ? [6, 4] : undefined,
      points: { show: epochs.length < 40 },
    }));
    const options = {
      title: kind,
      width: holder.clientWidth || 400,
      height: 220,
      scales: { x: { time: false } },
      axes: [{ ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] }, { ...axis, size: 60 }],
      series: [{ label: section.dataset.epoch }, ...series],
    };
    return new uPlot(options, [[], ...names.map(() => [])], holder);
  }

  function draw() {
    drawing = 0;
    section.hidden = false;
    const kinds = new Map();
    for (const name of measures.keys()) kinds.set(family(name), [...(kinds.get(family(name)) ?? []), name]);
    for (const [kind, names] of kinds) {
      let known = charts.get(kind);
      if (known && known.names.length !== names.length) {
        known.plot.root.parentElement.remove();
        known.plot.destroy();
        known = undefined;
      }
      if (!known) {
        known = { names, plot: chart(kind, names) };
        charts.set(kind, known);
      }
      known.plot.setData([epochs, ...names.map((name) => measures.get(name))]);
      known.plot.setLegend({ idx: epochs.length - 1 }); // until a pointer chooses another one
    }
  }

  const number = (value) => (typeof value === 'number' && Number.isFinite(value) ? value : null);

  function take(told) {
    if (told.event === 'stage') {
      section.hidden = false;
      stage.textContent = told.text;
    } else if (told.event === 'epoch') {
      stage.textContent = section.dataset.latest.replace('{epoch}', told.epoch).replace('{epochs}', told.epochs);
      epochs.push(epochs.length + 1);
      for (const name of Object.keys(told.measures ?? {})) {
        if (!measures.has(name)) measures.set(name, Array(epochs.length - 1).fill(null));
      }
      for (const [name, values] of measures) values.push(number(told.measures?.[name]));
      drawing ||= requestAnimationFrame(draw);
    }
  }

  listen(section.dataset.from, take);

  addEventListener('resize', () => {
    for (const { plot } of charts.values()) plot.setSize({ width: plot.root.parentElement.clientWidth, height: 220 });
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
    for (const { plot } of charts.values()) plot.redraw();
  });
})();
