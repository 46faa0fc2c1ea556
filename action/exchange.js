"use strict";
/** One exchange: the form of RFC 8693 §2.1, and what the broker's answer means. */

const { Failure, Later } = require("./failure.js");
const { object, passing, retryAfterMs, send } = require("./http.js");
const { refused } = require("./refusal.js");

const GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"; // RFC 8693 §2.1
const SUBJECT_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:id_token"; // RFC 8693 §3
const CREDENTIAL = /^[\x21-\x7e]+$/;

/** Exchanges an identity token for a credential, masked; or, for a check, asks what would be issued.  Throws Later, Failure. */
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
  if (answer.status === 200 && asked.check && body.allowed === true) return { ...granted(body), ...names(answer) };
  if (answer.status === 200 && !asked.check && typeof body.access_token === "string" && CREDENTIAL.test(body.access_token)) {
    await runner.mask(body.access_token);
    return { ...issued(body, begunMs), ...names(answer) };
  }
  throw failure(asked, answer, body, identityToken);
}

function issued(body, begunMs) {
  const claims = payload(body.access_token);
  const endsMs = Number.isFinite(claims.exp) ? claims.exp * 1000 : begunMs + Number(body.expires_in) * 1000;
  return {
    token: body.access_token,
    serviceAccount: text(claims.sub),
    audience: text(claims.aud),
    scope: text(body.scope),
    expiresAt: instant(endsMs),
  };
}

function granted(body) {
  return {
    serviceAccount: text(body.service_account),
    trustRule: text(body.trust_rule),
    audience: text(body.audience),
    scope: text(body.scope),
    expiresIn: text(body.expires_in),
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
  if (typeof body.error !== "string") {
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

function text(value) {
  if (Array.isArray(value)) return value.map(text).join(" ");
  return typeof value === "string" || typeof value === "number" ? String(value) : "";
}

/** A time in milliseconds as ISO 8601 has it, to the second; empty where it is none. */
function instant(ms) {
  const date = new Date(ms);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString().replace(/\.\d+Z$/, "Z");
}

module.exports = { exchange, instant };
