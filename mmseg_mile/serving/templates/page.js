// Sends the image that was dropped, chosen or pasted, and shows the answer.
'use strict';
const drop = document.querySelector('.drop');
const input = document.getElementById('file');
const expert = document.getElementById('expert');
const state = document.getElementById('state');
const result = document.getElementById('result');
const maxBytes = Number(document.body.dataset.maxBytes);
let present = null;
let asked = 0;

function complain(text) {
  const line = document.createElement('p');
  line.className = 'error';
  line.setAttribute('role', 'alert');
  line.textContent = text;
  result.replaceChildren(line);
}

async function predict(file) {
  if (!file) return;
  present = file;
  // only the answer to the last question counts
  const mine = ++asked;
  if (file.size > maxBytes) {
    state.textContent = '';
    complain(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB, the limit is ${maxBytes / 1e6} MB.`);
    return;
  }
  state.textContent = `Looking at ${file.name} ...`;
  const query = new URLSearchParams({ name: file.name, expert: expert.value });
  try {
    const answer = await fetch(`/predict?${query}`, { method: 'POST', body: file });
    const html = await answer.text();
    if (mine === asked) result.innerHTML = html;
  } catch (error) {
    if (mine === asked) complain('The server does not answer. Is it still running?');
  }
  if (mine === asked) state.textContent = '';
}

input.addEventListener('change', () => predict(input.files[0]));
expert.addEventListener('change', () => predict(present));
for (const kind of ['dragover', 'dragleave', 'drop']) {
  addEventListener(kind, event => {
    event.preventDefault();
    drop.classList.toggle('over', kind === 'dragover');
    if (kind === 'drop') predict(event.dataTransfer.files[0]);
  });
}
addEventListener('paste', event => predict(event.clipboardData.files[0]));
result.addEventListener('input', event => {
  if (event.target.matches('.opacity')) {
    result.querySelector('.map').style.opacity = event.target.value / 100;
  }
});
document.querySelector('form').addEventListener('submit', event => event.preventDefault());
