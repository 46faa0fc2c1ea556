"use strict";
/**
 * Why there is no credential.
 *
 * Everything in here is shown to people: nobody puts a token, a body or somebody else's error message into it.
 */

/** `title` is one short line; `lines` say what to do; `rows` are names with values, for those who look into it. */
class Failure extends Error {
  constructor(title, lines = [], rows = []) {
    super(title);
    this.title = title;
    this.lines = lines;
    this.rows = rows;
  }
}

/** Nothing is wrong but the moment: worth another try, `afterMs` milliseconds from now at the earliest. */
class Later extends Failure {
  constructor(title, lines = [], rows = [], afterMs = 0) {
    super(title, lines, rows);
    this.afterMs = afterMs;
  }
}

/** Perhaps nothing is wrong but the moment, and more likely something is: worth a few tries. */
class Doubtful extends Later {}

module.exports = { Doubtful, Failure, Later };
