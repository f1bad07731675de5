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
})();
