"use strict";
/**
 * The step: the job's identity becomes a credential.
 *
 * Order: inputs > identity token > exchange > mask > state for the end of the job > outputs > what people read.
 * Each try takes a fresh identity token.  Whatever fails says what to change; nothing that it writes holds a token.
 */

const { setTimeout: sleep } = require("node:timers/promises");

const { asked } = require("./asked.js");
const { exchange, instant } = require("./exchange.js");
const { Failure } = require("./failure.js");
const { identityToken, tokenService } = require("./identity.js");
const { persist } = require("./retry.js");
const { Runner } = require("./runner.js");

const TOTAL_MS_MAX = 60_000;
// Workflows write `run: deploy ${{ steps.broker.outputs.scope }}`, so an output holds names, and nothing that a shell runs.
// The first is a name of the policy's, the last one of the broker's; RFC 6749 §3.3 would have $(id) for a scope.
const NAME = /^[a-z][a-z0-9-]{0,62}$/;
const SCOPES = /^[\w.:/*@+=,~%-]+( [\w.:/*@+=,~%-]+)*$/;
const REQUEST = /^req_[\w-]{1,64}$/;

async function main(runner) {
  const wanted = asked(runner);
  const service = tokenService(runner);
  const deadlineMs = Date.now() + TOTAL_MS_MAX;
  const attempt = async () => {
    const identity = await identityToken(runner, service, wanted.identityAudience, deadlineMs);
    return exchange(runner, wanted, identity, deadlineMs);
  };
  const waiting = (failure) => runner.say(`${failure.title}; waiting, and trying again until ${instant(deadlineMs)}`);
  const got = await persist(attempt, { deadlineMs, now: Date.now, random: Math.random, sleep, waiting });
  if (!wanted.check) handOn(runner, wanted, got);
  await tell(runner, wanted, got);
}

function handOn(runner, wanted, got) {
  runner.output("token", got.token);
  runner.output("expires-at", got.expiresAt);
  if (wanted.exportEnv) runner.exportVariable(wanted.exportEnv, got.token);
}

async function tell(runner, wanted, got) {
  runner.output("service-account", await plain(runner, "service-account", got.serviceAccount, NAME));
  runner.output("scope", await plain(runner, "scope", got.scope, SCOPES));
  runner.output("request-id", await plain(runner, "request-id", got.requestId, REQUEST));
  const rows = [
    ["env", wanted.env],
    ["service account", got.serviceAccount],
    ["trust rule", got.trustRule ?? ""],
    ["audience", got.audience],
    ["scope", got.scope],
    ["expires", got.expiresAt ?? `${got.expiresIn} s after it is issued`],
    ["request", got.requestId],
    ["trace", got.traceId],
  ].filter(([, value]) => value !== "");
  const heading = wanted.check ? `broker: ${wanted.env} would issue a credential` : `broker: ${wanted.env} issued a credential`;
  runner.summarize(heading, wanted.check ? ["A check: nothing was issued."] : [], rows);
  await runner.say(`${wanted.env} ${wanted.check ? "would issue" : "issued"} a credential`);
  for (const [name, value] of rows) await runner.say(`${name.padEnd(15)} ${value}`);
}

/**
 * A value as an output; nothing in its place, and a warning, where it is no such name.  The job goes on: its credential is
 * good, none of these decides over it, and a step that compares an empty one finds it unequal.
 */
async function plain(runner, name, value, form) {
  if (value === "" || form.test(value)) return value;
  const why = "what the broker's answer has there is no name, and a later step's shell might take it for a command:";
  await runner.annotate("warning", `broker: the output ${name} is left empty`, [why, value]);
  return "";
}

async function fail(runner, error) {
  // A defect of ours is named by its kind alone: its message may quote what it choked on.
  const failure = error instanceof Failure ? error : new Failure(`a defect in this Action (${error?.name})`);
  const rows = failure.rows.map(([name, value]) => `${name}: ${value}`);
  await runner.annotate("error", `broker: ${failure.title}`, [...failure.lines, ...rows]);
  runner.summarize(`broker: ${failure.title}`, failure.lines, failure.rows);
  process.exitCode = 1;
}

const runner = new Runner(process.env, process.stdout);
main(runner).catch((error) => fail(runner, error));
