"use strict";
/**
 * One bounded request: https, or http that does not leave the machine; no redirect is followed; time and size have an end.
 *
 * No error from here repeats what a library said: such messages can hold the header that they complain about.
 * A proxy is used where the workflow sets NODE_USE_ENV_PROXY (Node.js 24).
 */

const { Doubtful, Failure, Later } = require("./failure.js");

const ANSWER_BYTES_MAX = 65_536;
const REQUEST_MS_MAX = 15_000;
const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/;
const PASSING = new Set([
  "ECONNREFUSED", "ECONNRESET", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN",
  "UND_ERR_CONNECT_TIMEOUT", "UND_ERR_HEADERS_TIMEOUT", "UND_ERR_BODY_TIMEOUT", "UND_ERR_SOCKET",
]);
const NO_SUCH_NAME = new Set(["ENOTFOUND", "EAI_AGAIN"]);
const PROXY = "behind a proxy, the step's env needs NODE_USE_ENV_PROXY: 1 beside HTTPS_PROXY";
const CERTIFICATE =
  "the certificate is not trusted: NODE_EXTRA_CA_CERTS: ca.pem, in the step's env, names the authority that signed it; " +
  "the URL's host must be in it";

/** The URL in `text` if a credential may travel there: https, or http on loopback, without user or fragment; else null. */
function confidential(text) {
  if (!URL.canParse(text)) return null;
  const url = new URL(text);
  const plain = url.protocol === "http:" && LOOPBACK.test(url.hostname);
  return (plain || url.protocol === "https:") && !url.username && !url.password && !url.hash ? url : null;
}

/**
 * Sends one request to `whom` (how people call it), until `deadlineMs` at the latest.
 * Answers {status, header(name), text}.  Throws Later where another try can help, else Failure.
 */
async function send(whom, url, { method, headers, body }, deadlineMs) {
  const timeMs = Math.max(1, Math.min(REQUEST_MS_MAX, deadlineMs - Date.now()));
  try {
    const answer = await fetch(url, {
      method,
      headers: { accept: "application/json", "user-agent": "broker-action", ...headers },
      body,
      redirect: "manual",
      signal: AbortSignal.timeout(timeMs),
    });
    if (answer.status >= 300 && answer.status < 400) {
      await answer.body?.cancel();
      throw new Failure(`${whom} answers with a redirect (${answer.status}), and none is followed`, [
        "a token would go to an address that nobody chose: name the broker's own URL",
      ]);
    }
    return { status: answer.status, header: (name) => answer.headers.get(name) ?? "", text: await bounded(whom, answer) };
  } catch (error) {
    throw error instanceof Failure ? error : unreachable(whom, error, timeMs);
  }
}

async function bounded(whom, answer) {
  const pieces = [];
  let bytes = 0;
  for await (const piece of answer.body ?? []) {
    bytes += piece.length;
    if (bytes > ANSWER_BYTES_MAX) throw new Failure(`${whom} answers with more than ${ANSWER_BYTES_MAX} bytes`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf-8");
}

function unreachable(whom, error, timeMs) {
  if (error?.name === "TimeoutError") {
    return new Later(`${whom} did not answer within ${Math.ceil(timeMs / 1000)} s`, [PROXY]);
  }
  const found = String(error?.cause?.code ?? error?.code ?? "");
  const code = /^[A-Z0-9_]{1,60}$/.test(found) ? found : "no further word";
  const title = `${whom} cannot be reached (${code})`;
  if (NO_SUCH_NAME.has(code)) return new Doubtful(title, ["the name is not found: is the URL right?", PROXY]);
  if (code === "ECONNREFUSED") return new Later(title, ["nobody listens there: is the URL right, and does it run?", PROXY]);
  if (/CERT|^UNABLE_TO_/.test(code)) return new Failure(title, [CERTIFICATE]);
  return new (PASSING.has(code) ? Later : Failure)(title, [PROXY]);
}

/** Whether another try can help after this answer. */
function passing(answer) {
  return answer.status === 429 || answer.status >= 500;
}

/** How long an answer asks to wait, in milliseconds: 0 where it does not (RFC 9110 §10.2.3: seconds, or a date). */
function retryAfterMs(answer) {
  const said = answer.header("retry-after");
  const ms = /^\d{1,9}$/.test(said) ? Number(said) * 1000 : Date.parse(said) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : 0;
}

/** The JSON object in `text`; an empty one where there is none. */
function object(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : {};
  } catch {
    return {};
  }
}

module.exports = { confidential, object, passing, retryAfterMs, send };
