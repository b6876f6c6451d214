/** The API reference: sends the requests of its forms and shows the answers. */

const token = document.getElementById("token");

for (const sample of document.querySelectorAll(".sample pre")) {
  sample.textContent = sample.textContent.replaceAll("https://streamer.example", location.origin);
}

// following a link to an operation or a schema opens it
function reveal() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
}
addEventListener("hashchange", reveal);
reveal();

function pretty(body) {
  try {
    return JSON.stringify(JSON.parse(body), null, 2);
  } catch {
    return body;
  }
}

for (const form of document.forms) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { method, path } = form.dataset;
    const output = form.querySelector("output");
    const query = new URLSearchParams();
    let filled = path;
    for (const input of form.querySelectorAll("input")) {
      if (input.dataset.in === "path") filled = filled.replace(`{${input.name}}`, encodeURIComponent(input.value));
      else if (input.value !== "") query.set(input.name, input.value);
    }
    const body = form.elements.body?.value || undefined;
    output.textContent = "…";
    try {
      const answer = await fetch(filled + (query.size > 0 ? `?${query}` : ""), {
        method,
        body,
        headers: {
          ...(token.value ? { Authorization: `Bearer ${token.value.trim()}` } : {}),
          ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        },
      });
      output.textContent = `${answer.status} ${answer.statusText}\n${pretty(await answer.text())}`;
    } catch (error) {
      output.textContent = `The request failed: ${error.message}`;
    }
  });
}
