"use strict";
/**
 * The end of the job: the credential is revoked (RFC 7009), where the broker has an endpoint for it.
 *
 * It never fails the job: a credential lives minutes in any case.
 */

const { Failure } = require("./failure.js");
const { confidential, object, send } = require("./http.js");
const { Runner } = require("./runner.js");

const TOTAL_MS_MAX = 20_000;

async function post(runner) {
  const token = runner.saved("token");
  const issuer = runner.saved("issuer");
  if (!token || Date.parse(runner.saved("expires-at")) <= Date.now()) return;
  runner.keepOut(token);
  const deadlineMs = Date.now() + TOTAL_MS_MAX;
  const endpoint = await revocationEndpoint(issuer, deadlineMs);
  if (!endpoint) return;
  const form = new URLSearchParams({ token, token_type_hint: "access_token" }); // RFC 7009 §2.1
  const headers = { "content-type": "application/x-www-form-urlencoded" };
  const whom = `the broker at ${issuer}`;
  const answer = await send(whom, endpoint, { method: "POST", headers, body: form.toString() }, deadlineMs);
  if (answer.status !== 200) throw new Failure(`${whom} answers ${answer.status}`);
  await runner.say("the credential is revoked");
}

/** Where the env's metadata says that credentials are revoked; null where it names no place. */
async function revocationEndpoint(issuer, deadlineMs) {
  const { origin, pathname } = new URL(issuer);
  const url = `${origin}/.well-known/oauth-authorization-server${pathname}`; // RFC 8414 §3.1
  const answer = await send(`the broker at ${issuer}`, url, { method: "GET" }, deadlineMs);
  if (answer.status !== 200) throw new Failure(`the metadata of ${issuer} cannot be read (${answer.status})`);
  const metadata = object(answer.text);
  if (typeof metadata.revocation_endpoint !== "string") return null;
  const endpoint = confidential(metadata.revocation_endpoint);
  // RFC 8414 §3.3; and the credential goes back to where it came from, and nowhere else.
  if (metadata.issuer !== issuer || endpoint?.origin !== origin) throw new Failure(`${issuer} has metadata of somebody else`);
  return endpoint;
}

async function warn(runner, error) {
  const why = error instanceof Failure ? error.title : `a defect in this Action (${error?.name})`;
  await runner.annotate("warning", "broker: the credential could not be revoked", [
    why,
    `It ends at ${runner.saved("expires-at")}.`,
  ]);
}

const runner = new Runner(process.env, process.stdout);
post(runner).catch((error) => warn(runner, error));
