"use strict";
/**
 * A refusal as its reader needs it: what the broker said, what to change, and what this job's own token says.
 *
 * The broker names claims and never tells values (docs/errors.md); the values here come from the job's token.  The words are
 * those of `broker token` (broker/client/refusals.py), with inputs for options.
 */

const SHOWN = [
  "repository", "repository_id", "repository_owner_id", "ref", "environment", "event_name", "job_workflow_ref",
  "runner_environment", "sub", "aud",
];
const NAMED_MAX = 20;
const FOR_THE_OWNER = new Set(["claims_not_satisfied", "no_rule_matched", "target_unknown", "revoked", "scope_not_granted"]);
const ABOUT_WHAT = new Set(["no_rule_matched", "target_unknown", "scope_not_granted", "malformed_request"]);

/** Title, lines and rows for a body of RFC 6749 §5.2 with `status`; `claims` are those of the token that was presented. */
function refused(asked, status, body, claims) {
  const reason = word(body.reason) || word(body.error);
  const named = words(body.claims).slice(0, NAMED_MAX);
  const rows = [
    ...named.map((name) => [`${name} (did not satisfy the rule)`, value(claims, name)]),
    ...SHOWN.filter((name) => !named.includes(name)).map((name) => [name, value(claims, name)]),
    ["request", word(body.request_id)],
    ["trace", word(body.trace_id)],
  ].filter(([, shown]) => shown !== "");
  const away = status === 429 || status >= 500;
  const verdict = away ? "cannot answer now" : "refused this job";
  // Behind a semicolon the broker says in short what the lines below say in full.
  const said = word(body.error_description).split("; ")[0];
  const told = away ? AWAY : [...whatWasAsked(asked, reason), ...change(asked, reason, body, claims)];
  const lines = [said, ...told, page(body)].filter((line) => line !== "");
  return { title: `${asked.env} ${verdict}: ${reason}`, lines, rows };
}

const AWAY = ["the broker, its store or the issuer's keys are away for the moment: run the job again later"];

function whatWasAsked({ audience, form }, reason) {
  if (!ABOUT_WHAT.has(reason)) return [];
  const names = { audience: words(audience), scope: (form.scope ?? "").split(" ").filter((name) => name !== "") };
  const parts = Object.entries(names).map(([what, each]) => `${what} ${each.join(" ") || "(none)"}`);
  const joined = [...names.audience, ...names.scope].filter((name) => name.includes(","));
  return [`asked for: ${parts.join("; ")}`, ...joined.map((name) => `${name} is one name: separate names by spaces`)];
}

function change(asked, reason, body, claims) {
  const lines = CHANGES[reason]?.({ asked, body, claims }) ?? [];
  const more = FOR_THE_OWNER.has(reason) && word(body.request_id);
  return more ? [...lines, `whoever runs the broker can see more: broker policy explain --request ${more}`] : lines;
}

const CHANGES = Object.assign(Object.create(null), {
  token_audience: audience,
  token_expired: ({ claims }) => [
    ...times(claims),
    "fetch it right before the exchange; if it is fresh, this machine's clock or the broker's is off",
  ],
  token_not_yet_valid: ({ claims }) => [
    ...times(claims),
    "this machine's clock or the broker's is off, or that of whoever made the token",
  ],
  token_untrusted: ({ asked, claims }) => {
    const entry = `issuers.yaml must have an entry with this very url, and ${asked.env} be open to it`;
    const keys = "its keys are not those that the broker has (an old jwks_file, keys that were just replaced)";
    return [`its issuer is ${word(claims.iss) || "(absent)"}: ${entry}; or ${keys}`];
  },
  token_replayed: () => ["each identity token counts once here: fetch one for each exchange"],
  no_rule_matched: ({ asked }) => {
    const account = asked.form.service_account ? `, service account (${asked.form.service_account})` : "";
    return [
      `are env (${asked.env}), audience, scope${account} right, and does a rule have this workload's id, not its name?`,
      "the broker says more only to a workload that a rule names by its ids",
    ];
  },
  claims_not_satisfied: () => ["run it where they fit the rule, or have the rule changed by the owner of the service account"],
  ambiguous_account: ({ body }) => [`service-account chooses: ${words(body.service_accounts).join(", ")}`],
  scope_missing: ({ body }) => [open(body) || "scope names what the job needs"],
  scope_not_granted: ({ body }) => [open(body) || "ask for less, or have the scope added to the rule's access"],
  target_unknown: ({ asked }) => [`an audience is the name of an Api of ${asked.env}, or its URL`],
  revoked: () => ["security cut this access off; its owner knows why"],
  ttl_invalid: () => ["ttl: 10m"],
});

function audience({ asked, body, claims }) {
  const seen = words(claims.aud).join(" ") || "(none)";
  const wanted = words(body.expected_audience).join(" or ") || asked.identityAudience;
  const made = `the identity token is made for ${seen}; get one from GitHub Actions for ${wanted}`;
  if (asked.identityAudience !== asked.issuer) {
    return [made, "leave identity-audience out, unless the platform needs another than the broker's own"];
  }
  if (!wanted.endsWith(`/${asked.env}`)) return [made, "identity-audience says what to ask the platform for"];
  const own = wanted.slice(0, -asked.env.length - 1);
  return [made, `the broker calls itself ${own}: server: ${own}`];
}

function times(claims) {
  const now = Date.now() / 1000;
  const told = [["iat", "made"], ["nbf", "valid from"], ["exp", "valid until"]];
  return told.filter(([name]) => Number.isFinite(claims[name])).map(([name, verb]) => {
    const ahead = claims[name] - now;
    return `${name}: ${verb} ${Math.abs(ahead).toFixed(0)} s ${ahead > 0 ? "from now" : "ago"} by this machine's clock`;
  });
}

function open(body) {
  const scopes = words(body.scopes);
  return scopes.length > 0 ? `open to this workload: scope: ${scopes.join(" ")}` : "";
}

function page(body) {
  return word(body.error_uri) ? `what it means, what to change: ${word(body.error_uri)}` : "";
}

function word(value) {
  return typeof value === "string" ? value : "";
}

function words(value) {
  return (Array.isArray(value) ? value : [value]).filter((each) => typeof each === "string");
}

function value(claims, name) {
  if (!Object.hasOwn(claims, name)) return "(not in the token)";
  const found = claims[name];
  if (found === "") return "(empty)";
  return typeof found === "string" ? found : JSON.stringify(found);
}

module.exports = { refused };
