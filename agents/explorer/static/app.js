// What moves on the pages: meters, live sections, the theme, a wallet. Everything else is the server's HTML.
"use strict";

// --- theme: the system's, until a person chooses ---
const root = document.documentElement;
const stored = localStorage.getItem("theme");
if (stored) root.dataset.theme = stored;

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// --- time: the chain's, as the server estimated it when it made the page ---
const loadedAt = performance.now();
let chainAtLoad = 0;
function chainNow() {
  return chainAtLoad + (performance.now() - loadedAt) / 1000;
}

// --- meters: what a stream has cost, f(t) = ceil(rate * t / 1e6), as the contract counts ---
const SCALE = 1000000n;
function flowed(rate, seconds) {
  return seconds <= 0 ? 0n : (rate * BigInt(seconds) + SCALE - 1n) / SCALE;
}
function digitsFor(rate, decimals) {
  const perSecond = (rate / SCALE).toString().length - 1; // so many digits that each second shows
  return Math.min(decimals, Math.max(2, decimals - perSecond + 2));
}
function shown(amount, decimals, digits) {
  const text = amount.toString().padStart(decimals + 1, "0");
  const whole = text.slice(0, text.length - decimals).replace(/\B(?=(\d{3})+$)/g, "\u2009");
  return decimals ? `${whole}.${text.slice(text.length - decimals).slice(0, digits)}` : whole;
}
function tick() {
  const now = Math.floor(chainNow());
  for (const meter of document.querySelectorAll(".meter[data-rate]")) {
    const { rate, start, end, stop, decimals, base } = meter.dataset;
    const until = Math.min(now, Number(stop || end));
    const scaled = BigInt(rate);
    const amount = BigInt(base || 0) + flowed(scaled, until - Number(start));
    const text = shown(amount, Number(decimals), digitsFor(scaled, Number(decimals)));
    if (meter.textContent !== text) meter.textContent = text;
  }
  for (const bar of document.querySelectorAll("progress[data-start]")) {
    bar.value = Math.max(0, Math.min(now, Number(bar.dataset.end)) - Number(bar.dataset.start));
  }
  for (const left of document.querySelectorAll("[data-until]")) {
    const seconds = Number(left.dataset.until) - now;
    left.textContent = seconds > 0 ? span(seconds) : "used up";
  }
  for (const ago of document.querySelectorAll("time[data-at]")) {
    ago.textContent = `${span(Math.max(0, now - Number(ago.dataset.at)))} ago`;
  }
}
function span(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

// --- live sections: asked for again when the chain says something, unless a person is in them ---
let asked = false;
let again = false; // something came while the last answer was on its way, or just after
async function refresh() {
  if (asked || document.hidden) {
    again = true;
    return;
  }
  asked = true;
  again = false;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const [shown, made] = [document, fresh].map((page) => page.getElementById("block"));
    // The feed tells only of blocks that come while it is open.
    if (shown && made && Number(made.textContent) > Number(shown.textContent)) shown.textContent = made.textContent;
    for (const section of document.querySelectorAll("[data-live][id]")) {
      const next = fresh.getElementById(section.id);
      if (next && !section.contains(document.activeElement)) {
        for (const open of section.querySelectorAll("details[open]")) {
          const same = open.id && next.querySelector(`#${open.id}`);
          if (same) same.open = true;
        }
        section.replaceWith(next);
      }
    }
    tick();
  } finally {
    setTimeout(() => {
      asked = false;
      if (again) refresh();
    }, 900);
  }
}
function listen() {
  const block = document.getElementById("block");
  const feed = new EventSource("/api/v1/live");
  let pending = 0;
  const soon = () => { clearTimeout(pending); pending = setTimeout(refresh, 250); };
  feed.addEventListener("block", (news) => {
    const data = JSON.parse(news.data);
    if (block) block.textContent = data.block;
  });
  feed.addEventListener("event", soon);
  feed.addEventListener("reorg", soon);
  addEventListener("visibilitychange", () => { if (again) refresh(); });
  const state = document.getElementById("state");
  feed.onopen = () => {
    if (state) state.textContent = "live";
    soon(); // what came after the page was made, and before it listened
  };
  feed.onerror = () => { if (state) state.textContent = "waiting for the explorer"; };
  addEventListener("pagehide", () => feed.close());
}

// --- an injected wallet ---
async function send(button, transactions) {
  const wallet = window.ethereum;
  const [from] = await wallet.request({ method: "eth_requestAccounts" });
  const said = document.getElementById("wallet-said");
  const chain = "0x" + Number(document.body.dataset.chain).toString(16);
  button.disabled = true;
  try {
    if ((await wallet.request({ method: "eth_chainId" })) !== chain) {
      await wallet.request({ method: "wallet_switchEthereumChain", params: [{ chainId: chain }] });
    }
    for (const { label, to, data, value } of transactions) {
      said.textContent = `${label}: confirm it in the wallet`;
      const hash = await wallet.request({ method: "eth_sendTransaction", params: [{ from, to, data, value }] });
      said.textContent = `${label}: sent, ${hash.slice(0, 12)}…`;
      for (let tries = 0; tries < 120; tries += 1) {
        const receipt = await wallet.request({ method: "eth_getTransactionReceipt", params: [hash] });
        if (receipt) {
          if (receipt.status !== "0x1") throw new Error(`${label}: the contract refused`);
          break;
        }
        await new Promise((done) => setTimeout(done, 500));
      }
      said.textContent = `${label}: done`;
    }
    if (button.dataset.transactions) button.classList.add("hidden");
  } catch (error) {
    said.textContent = error.message || String(error);
  } finally {
    button.disabled = false;
  }
}
async function wallet() {
  const bar = document.getElementById("wallet");
  if (!bar || !window.ethereum) return;
  bar.classList.remove("hidden");
  const connect = document.getElementById("connect");
  connect?.addEventListener("click", async () => {
    const [account] = await window.ethereum.request({ method: "eth_requestAccounts" });
    location.href = `/account/${account}`;
  });
  const accounts = await window.ethereum.request({ method: "eth_accounts" });
  const mine = (accounts[0] || "").toLowerCase();
  for (const button of document.querySelectorAll("button[data-payer]")) {
    if (button.dataset.payer.toLowerCase() !== mine) continue;
    button.classList.remove("hidden");
  }
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-transactions]");
  if (!button) return;
  const answer = await fetch(button.dataset.transactions);
  const body = await answer.json();
  if (answer.ok) await send(button, body.transactions);
  else document.getElementById("wallet-said").textContent = body.detail;
});
document.addEventListener("submit", async (event) => {
  if (event.target.id !== "open-form") return;
  event.preventDefault();
  const [payer] = await window.ethereum.request({ method: "eth_requestAccounts" });
  const seconds = new FormData(event.target).get("seconds");
  const answer = await fetch(`${event.target.action}?payer=${payer}&seconds=${seconds}`);
  const body = await answer.json();
  const button = event.target.querySelector("button");
  if (answer.ok) await send(button, body.transactions);
  else document.getElementById("wallet-said").textContent = JSON.stringify(body.detail);
});

addEventListener("DOMContentLoaded", () => {
  chainAtLoad = Number(document.body.dataset.now);
  const theme = document.getElementById("theme");
  const label = () => theme.setAttribute("aria-label", isDark() ? "Use the light theme" : "Use the dark theme");
  label();
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
    label();
  });
  for (const select of document.querySelectorAll("form.filters select")) {
    select.addEventListener("change", () => select.form.requestSubmit());
  }
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName)) {
      event.preventDefault();
      document.getElementById("q")?.focus();
    }
  });
  tick();
  setInterval(tick, 250);
  if (document.querySelector("[data-live]")) listen();
  wallet();
});
