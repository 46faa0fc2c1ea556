"use strict";
/** One exchange: the form of RFC 8693 §2.1, and what the broker's answer means. */

const { Failure, Later } = require("./failure.js");
const { object, passing, retryAfterMs, send } = require("./http.js");
const { refused } = require("./refusal.js");

const GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"; // RFC 8693 §2.1
const SUBJECT_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:id_token"; // RFC 8693 §3
const BEARER_TOKEN = /^[\w.~+/=-]+$/; // RFC 6750 §2.1: nothing that would end a header, a line or a word of a shell
const EXPIRES_IN_MAX_S = 366 * 86_400;

/**
 * Exchanges an identity token for a credential, masked and known to the end of the job; or, for a check, asks what would be
 * issued.  Throws Later, Failure.
 */
async function exchange(runner, asked, identityToken, deadlineMs) {
  const form = new URLSearchParams({ grant_type: GRANT_TYPE, subject_token_type: SUBJECT_TOKEN_TYPE, ...asked.form });
  for (const audience of asked.audience) form.append("audience", audience);
  form.append("subject_token", identityToken);
  const url = `${asked.issuer}/${asked.check ? "check" : "token"}`;
  const headers = { "content-type": "application/x-www-form-urlencoded" };
  const begunMs = Date.now();
  const sent = { method: "POST", headers, body: form.toString() };
  const answer = await send(`the broker at ${asked.issuer}`, url, sent, deadlineMs);
  const body = object(answer.text);
  if (answer.status === 200 && asked.check && body.allowed === true && isLife(body.expires_in)) {
    return { ...granted(body), ...names(answer) };
  }
  if (answer.status === 200 && !asked.check && isCredential(body)) {
    const endsMs = begunMs + body.expires_in * 1000;
    await runner.mask(body.access_token);
    // What takes it back comes before all reading: whatever fails from here on, it does not outlive the job.
    runner.save("token", body.access_token);
    runner.save("issuer", asked.issuer);
    runner.save("expires-at", instant(endsMs));
    return { ...issued(body, endsMs), ...names(answer) };
  }
  throw failure(asked, answer, body, identityToken);
}

// RFC 6749 §5.1, RFC 8693 §2.2.1; the same as in broker/client/exchange.py.
function isCredential({ access_token: token, token_type: type, expires_in: lifeS }) {
  const bearer = typeof type === "string" && type.toLowerCase() === "bearer";
  return bearer && typeof token === "string" && BEARER_TOKEN.test(token) && isLife(lifeS);
}

function isLife(lifeS) {
  return Number.isInteger(lifeS) && lifeS > 0 && lifeS <= EXPIRES_IN_MAX_S;
}

// A credential is opaque: what its claims say is for people, and none of it decides anything.
function issued(body, endsMs) {
  const claims = payload(body.access_token);
  const expiresAt = Number.isFinite(claims.exp) ? instant(claims.exp * 1000) : "";
  return {
    token: body.access_token,
    serviceAccount: text(claims.sub),
    audience: text(claims.aud),
    scope: text(body.scope),
    expiresAt: expiresAt || instant(endsMs),
  };
}

function granted(body) {
  return {
    serviceAccount: text(body.service_account),
    trustRule: text(body.trust_rule),
    audience: text(body.audience),
    scope: text(body.scope),
    expiresIn: body.expires_in,
  };
}

// What the owner of the service account finds the exchange by (docs/http.md).
function names(answer) {
  return { requestId: answer.header("x-request-id"), traceId: answer.header("traceresponse").split("-")[1] ?? "" };
}

function failure(asked, answer, body, identityToken) {
  const again = passing(answer);
  if (answer.status === 404) {
    const where = `${asked.issuer}/.well-known/openid-configuration answers where an env is served`;
    return new Failure(`${asked.server} has no env ${asked.env}, or is not the broker (404)`, [where]);
  }
  // No refusal is a 200, and what is nearly a credential is not shown.
  if (answer.status === 200 || typeof body.error !== "string") {
    const title = `${asked.server} answered ${answer.status} without a broker's words`;
    const lines = ["is this the broker's URL? a proxy or a gateway may stand in between"];
    return again ? later(answer, title, lines, []) : new Failure(title, lines);
  }
  const { title, lines, rows } = refused(asked, answer.status, body, payload(identityToken));
  return again ? later(answer, title, lines, rows) : new Failure(title, lines, rows);
}

function later(answer, title, lines, rows) {
  const afterMs = retryAfterMs(answer);
  const asks = afterMs > 0 ? [`it asks to wait ${Math.ceil(afterMs / 1000)} s`] : [];
  return new Later(title, [...lines, ...asks], rows, afterMs);
}

/** The claims of a JWT, unverified; none where it is no JWT. */
function payload(token) {
  return object(Buffer.from(token.split(".")[1] ?? "", "base64url").toString("utf-8"));
}

/** A text, or a list of texts by spaces; all else, lists within lists among it, is left out. */
function text(value) {
  return (Array.isArray(value) ? value : [value]).filter((each) => typeof each === "string").join(" ");
}

/** A time in milliseconds as ISO 8601 has it, to the second; empty where it is none. */
function instant(ms) {
  const date = new Date(ms);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString().replace(/\.\d+Z$/, "Z");
}

module.exports = { exchange, instant };
