"use strict";
/** Trying again: for as long as it can help, and never beyond a deadline. */

const { Doubtful, Later } = require("./failure.js");

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 8_000;
const LAST_TRY_MS = 2_000; // what is left for the last try
const DOUBTFUL_TRIES_MAX = 4; // a wrong name should not take a minute to say so

/**
 * What `attempt()` answers.  After a Later it is called again until the deadline: never earlier than that says, else with
 * pauses that double up to the longest; they differ from job to job, so that those who were sent away together do not come
 * back together.  `waiting(failure)` hears once that it takes longer.  Throws the last failure.
 */
async function persist(attempt, { deadlineMs, now, random, sleep, waiting }) {
  let said = false;
  for (let tries = 1; ; tries += 1) {
    try {
      return await attempt();
    } catch (failure) {
      if (!(failure instanceof Later)) throw failure;
      const doubtful = failure instanceof Doubtful;
      const leftMs = deadlineMs - now() - LAST_TRY_MS;
      if ((doubtful && tries >= DOUBTFUL_TRIES_MAX) || leftMs <= 0 || failure.afterMs > leftMs) throw failure;
      if (!doubtful && !said) {
        said = true;
        await waiting(failure);
      }
      await sleep(Math.min(leftMs, pauseMs(failure, tries, random())));
    }
  }
}

function pauseMs(failure, tries, random) {
  const grown = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (tries - 1));
  return Math.max(failure.afterMs * (1 + random / 4), grown * (1 - random / 2));
}

module.exports = { persist };
