"use strict";
/** The job's identity: a token of GitHub's, asked for anew before each exchange, because each one counts once. */

const { readFileSync } = require("node:fs");

const { Failure, Later } = require("./failure.js");
const { confidential, object, passing, retryAfterMs, send } = require("./http.js");

const WHOM = "the runner's token service";
const COMPACT_JWS = /^[\w-]+\.[\w-]+\.[\w-]+$/;
const PERMISSION = [
  "add to the job: permissions: {id-token: write, contents: read}; a permission that is not in the list is then none",
  "in a reusable workflow, the job that calls it needs the same",
];

/** Where this job asks for identity tokens.  Throws Failure, with what to change, where the runner offers none. */
function tokenService(runner) {
  const url = runner.variable("ACTIONS_ID_TOKEN_REQUEST_URL");
  const bearer = runner.variable("ACTIONS_ID_TOKEN_REQUEST_TOKEN");
  if (!url || !bearer) {
    if (fromFork(runner)) {
      throw new Failure("a pull request from a fork gets no identity token", [
        "GitHub gives none to such a run, whatever its permissions say: a stranger's code is at work",
        "leave the step out there, or run the job on push, after the change has been reviewed and merged",
      ]);
    }
    throw new Failure("this job may not ask for an identity token: `id-token: write` is missing", PERMISSION);
  }
  if (!confidential(url)) throw new Failure("ACTIONS_ID_TOKEN_REQUEST_URL is no https URL");
  runner.keepOut(bearer);
  return { url, bearer };
}

// A repository can be somebody's fork and have pull requests of its own: what counts is where this one comes from.
// pull_request_target runs the repository's own workflow, whose permissions count.
function fromFork(runner) {
  const event = runner.variable("GITHUB_EVENT_NAME");
  if (!event.startsWith("pull_request") || event === "pull_request_target") return false;
  try {
    const { base, head } = JSON.parse(readFileSync(runner.variable("GITHUB_EVENT_PATH"), "utf-8")).pull_request;
    return head.repo?.id !== base.repo.id;
  } catch {
    return false;
  }
}

/** A fresh identity token for `audience`, masked.  Throws Later or Failure. */
async function identityToken(runner, service, audience, deadlineMs) {
  const url = `${service.url}&audience=${encodeURIComponent(audience)}`;
  const asking = { method: "GET", headers: { authorization: `bearer ${service.bearer}` } };
  const answer = await send(WHOM, url, asking, deadlineMs);
  const said = `${WHOM} answers ${answer.status}`;
  if (passing(answer)) throw new Later(said, [], [], retryAfterMs(answer));
  if (answer.status !== 200) throw new Failure(`${said}, without an identity token`);
  const token = object(answer.text).value;
  if (typeof token !== "string" || !COMPACT_JWS.test(token)) throw new Failure(`${said}, without an identity token`);
  await runner.mask(token);
  return token;
}

module.exports = { identityToken, tokenService };
