import { defineConfig } from "vitest/config";

export default defineConfig({
  // Some of the suite's tests measure seconds of a TTL on the wall: a machine that has other things to do
  // may sleep over one, so that each gets a second try.
  test: { include: ["*.test.mjs"], testTimeout: 30_000, retry: 1, fileParallelism: false },
});
