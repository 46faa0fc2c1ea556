"use strict";
/** What the workflow asks for: the inputs, read once and checked before anything is sent. */

const { Failure } = require("./failure.js");
const { confidential } = require("./http.js");

const SECONDS = { s: 1, m: 60, h: 3600 };

/** The inputs as values.  Throws Failure that names the input and says what would be right. */
function asked(runner) {
  const env = runner.input("env");
  if (!/^[a-z][a-z0-9-]*$/.test(env)) throw wrong("env", "a name such as prod");
  const server = base(runner.input("server"), env);
  const check = runner.input("check") || "false";
  if (check !== "true" && check !== "false") throw wrong("check", "true or false");
  const exportEnv = runner.input("export-env");
  if (!/^([A-Za-z_]\w*)?$/.test(exportEnv)) throw wrong("export-env", "the name of a variable");
  const form = {
    scope: list(runner.input("scope")).join(" "),
    service_account: runner.input("service-account"),
    ttl: ttl(runner.input("ttl")),
  };
  const issuer = `${server}/${env}`;
  return Object.freeze({
    env,
    server,
    issuer,
    check: check === "true",
    exportEnv,
    audience: list(runner.input("audience")),
    identityAudience: runner.input("identity-audience") || issuer,
    form: Object.fromEntries(Object.entries(form).filter(([, text]) => text !== "")),
  });
}

function base(text, env) {
  const url = confidential(text);
  if (!url || url.search) throw wrong("server", "the broker's https URL, such as https://broker.acme.example");
  const server = url.href.replace(/\/+$/, "");
  if (server.endsWith(`/${env}`)) {
    const right = `server: ${server.slice(0, -env.length - 1)}, env: ${env}`;
    throw new Failure("the input `server` already ends in the env", [right]);
  }
  return server;
}

function list(text) {
  return text.split(/\s+/).filter((name) => name !== "");
}

function ttl(text) {
  const found = /^(\d{1,6})([smh]?)$/.exec(text);
  if (text && !found) throw wrong("ttl", "a time such as 90s, 10m or 1h");
  return found ? String(Number(found[1]) * SECONDS[found[2] || "s"]) : "";
}

function wrong(name, right) {
  return new Failure(`the input \`${name}\` must be ${right}`);
}

module.exports = { asked };
