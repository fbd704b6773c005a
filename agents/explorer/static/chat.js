// The chat panel: one question to the consumer gateway, the answer as it comes, and what it costs meanwhile.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("chat");
  if (!form) return;
  const said = document.getElementById("said");
  const meters = { time: document.getElementById("chat-time"), cost: document.getElementById("chat-cost") };
  const stop = document.getElementById("chat-stop");
  const ask = document.getElementById("chat-ask");
  const status = document.getElementById("chat-status");
  let control = null;
  let poll = 0;
  stop.addEventListener("click", () => control?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const words = new FormData(form);
    control = new AbortController();
    ask.disabled = true;
    stop.disabled = false;
    said.textContent = "";
    meters.cost.textContent = "–";
    status.textContent = "looking for an offer, opening a stream";
    const began = performance.now();
    let first = 0;
    const notes = {}; // what the gateway says at the end, in comments
    const clock = setInterval(() => {
      meters.time.textContent = ((performance.now() - began) / 1000).toFixed(1);
    }, 100);
    clearInterval(poll); // it goes on after an answer: the gateway keeps a session for the next question
    poll = setInterval(() => spent(meters.cost), 1000);
    try {
      const answer = await fetch("/chat/completions", {
        method: "POST",
        signal: control.signal,
        headers: { "content-type": "application/json", "x-penstock-explorer": "chat" },
        body: JSON.stringify({
          model: words.get("model"), stream: true, max_tokens: Number(words.get("max_tokens")),
          messages: [{ role: "user", content: words.get("prompt") }],
        }),
      });
      if (!answer.ok) throw new Error((await answer.json()).error?.message || `HTTP ${answer.status}`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        rest += value;
        const lines = rest.split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (line.startsWith(": x-penstock-")) {
            const [name, ...rest] = line.slice(2).split(" ");
            notes[name] = rest.join(" ");
          }
          if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
          const chunk = JSON.parse(line.slice(6));
          if (chunk.error) throw new Error(chunk.error.message);
          const piece = chunk.choices?.[0]?.delta?.content || "";
          if (piece && !first) {
            first = performance.now() - began;
            status.textContent = `first words after ${(first / 1000).toFixed(2)} s`;
          }
          said.textContent += piece;
        }
      }
      status.textContent += "; done";
      if (notes["x-penstock-cost"]) status.textContent += `, for ${notes["x-penstock-cost"]}`;
      if (notes["x-penstock-provider"]) status.textContent += `, by ${notes["x-penstock-provider"]}`;
    } catch (error) {
      status.textContent = error.name === "AbortError" ? "stopped" : error.message;
    } finally {
      clearInterval(clock);
      ask.disabled = false;
      stop.disabled = true;
    }
  });

  // What the account that buys has running now, by the second.
  async function spent(meter) {
    const payer = new FormData(form).get("payer");
    if (!payer) return;
    const answer = await fetch(`/api/v1/streams?payer=${payer}&limit=1`);
    const [stream] = (await answer.json()).items;
    if (!stream) return;
    const tokens = await (await fetch("/api/v1/tokens")).json();
    const token = tokens.find((one) => one.address === stream.token) || { decimals: 18, symbol: "" };
    const now = Math.min(Math.floor(chainNow()), stream.stop || stream.end);
    const cost = flowed(BigInt(stream.rate), now - stream.start);
    const rate = shown(BigInt(stream.rate) / 1000000n, token.decimals, token.decimals).replace(/\.?0+$/, "");
    if (stream.status !== "open") clearInterval(poll);
    meter.textContent = `${shown(cost, token.decimals, 8)} ${token.symbol} (${rate} a second, ${stream.status})`;
  }
});
