"use strict";
/**
 * The runner, as this Action talks to it: inputs, workflow commands on stdout, the files that GITHUB_… variables name.
 *
 * Two rules hold here, so that nobody else has to think of them. What is secret is masked before it is used, and is taken out
 * of every text that people see. And no text can pose as a workflow command, a second output, or markup of the summary,
 * whoever wrote it: a branch's name comes from whoever opened the pull request.
 */

const { randomUUID } = require("node:crypto");
const { appendFileSync } = require("node:fs");

const { Failure } = require("./failure.js");

const VALUE_CHARACTERS_MAX = 500;
// Control and format characters (line ends and the marks that turn writing around are among them), halves of surrogate pairs.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** Text of unknown origin on one line: what cannot be seen is spelled out, what is long is cut. */
function visible(text) {
  const short = text.length > VALUE_CHARACTERS_MAX ? `${text.slice(0, VALUE_CHARACTERS_MAX)}…` : text;
  return short.replace(UNSEEN, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** The data of a workflow command, as the runner decodes it. */
function data(text) {
  return text.replaceAll("%", "%25").replaceAll("\r", "%0D").replaceAll("\n", "%0A");
}

/** The value of a workflow command's property. */
function property(text) {
  return data(text).replaceAll(":", "%3A").replaceAll(",", "%2C");
}

/** Text as itself in Markdown and HTML: a character reference never counts as markup (CommonMark 0.31 §2.5). */
function literal(text) {
  return text.replace(/[^A-Za-z0-9 /]/gu, (character) => `&#${character.codePointAt(0)};`);
}

class Runner {
  #environment;
  #stdout;
  #secrets = new Set();

  constructor(environment, stdout) {
    this.#environment = environment;
    this.#stdout = stdout;
  }

  /** A variable of the runner; empty if it is not there. */
  variable(name) {
    return this.#environment[name] ?? "";
  }

  /** An input of action.yml, without white space around it; empty if it is not given. */
  input(name) {
    return this.variable(`INPUT_${name.toUpperCase()}`).trim();
  }

  /** What `save` kept, in the step that runs when the job ends. */
  saved(name) {
    return this.variable(`STATE_${name}`);
  }

  /** From now on the runner shows *** in place of `secret`, and no text from here holds it.  Wait for it before using one. */
  async mask(secret) {
    this.keepOut(secret);
    await this.#write(`::add-mask::${data(secret)}`);
  }

  /** No text from here holds `secret`. */
  keepOut(secret) {
    if (secret) this.#secrets.add(secret);
  }

  /** A line of the log.  It begins with a word of ours, and "##[", the older form of a command, is broken up. */
  async say(text) {
    await this.#write(`broker: ${visible(this.#clean(text)).replaceAll("##[", "## [")}`);
  }

  /** An annotation, `kind` error or warning: a title and lines below it. */
  async annotate(kind, title, lines) {
    const shown = [title, ...lines].map((line) => visible(this.#clean(line)));
    await this.#write(`::${kind} title=${property(shown[0])}::${data(shown.join("\n"))}`);
  }

  /** For the steps that follow. */
  output(name, value) {
    this.#append("GITHUB_OUTPUT", name, value);
  }

  /** For the step that runs when the job ends. */
  save(name, value) {
    this.#append("GITHUB_STATE", name, value);
  }

  /** A variable in the environment of all steps that follow. */
  exportVariable(name, value) {
    this.#append("GITHUB_ENV", name, value);
  }

  /**
   * A part of the job's summary: a heading, lines, and a table of names with values.  Nothing where there is no summary.
   * An address at the end of a line becomes a link; in a value, which may be a stranger's, nothing does.
   */
  summarize(heading, lines, rows) {
    const file = this.variable("GITHUB_STEP_SUMMARY");
    if (!file) return;
    const shown = (text) => literal(visible(this.#clean(text)));
    const table = rows.map(([name, value]) => `| ${shown(name)} | <code>${shown(value)}</code> |\n`);
    const linked = (text) => {
      const [, before, address] = /^(.*?)(https?:\/\/[\w.:/-]+)?$/u.exec(visible(this.#clean(text)));
      return literal(before) + (address ? `<${address}>` : "");
    };
    const parts = [`### ${shown(heading)}\n`, ...lines.map((line) => `${linked(line)}\n`)];
    if (rows.length > 0) parts.push(`| | |\n|---|---|\n${table.join("")}`);
    appendFileSync(file, `${parts.join("\n")}\n`);
  }

  #clean(text) {
    let clean = text;
    for (const secret of this.#secrets) clean = clean.replaceAll(secret, "***");
    return clean;
  }

  // Nobody can guess the delimiter, so no value can end itself and begin another.
  #append(variable, name, value) {
    const file = this.variable(variable);
    if (!file) throw new Failure(`this runner is too old: ${variable} is not set`);
    const delimiter = `broker_${randomUUID()}`;
    appendFileSync(file, `${name}<<${delimiter}\n${value}\n${delimiter}\n`);
  }

  // Pipes are asynchronous on some systems: a mask counts when it is out.
  #write(line) {
    return new Promise((resolve) => this.#stdout.write(`${line}\n`, resolve));
  }
}

module.exports = { Runner };
