import assert from "node:assert/strict";
import { test } from "node:test";

import { rungName, strings, tables } from "../../web/lib/strings.js";

test("every language has every string, of the same kind", () => {
  const { en, ...others } = tables;
  for (const [language, table] of Object.entries(others)) {
    assert.deepEqual(Object.keys(table).sort(), Object.keys(en).sort(), language);
    for (const key of Object.keys(en)) assert.equal(typeof table[key], typeof en[key], `${language}: ${key}`);
  }
});

test("a locale falls back to its language, and an unknown one to English", () => {
  assert.equal(strings("zh-TW").exact, tables.zh.exact);
  assert.equal(strings("fr").exact, "exact");
  assert.equal(strings(undefined).exact, "exact");
  assert.equal(strings("constructor").exact, "exact");
});

test("a rung without a translation keeps its name", () => {
  assert.equal(rungName(strings("zh"), "whole"), "整幅");
  assert.equal(rungName(strings("zh"), "a new way"), "a new way");
  assert.equal(rungName(strings("zh"), "toString"), "toString");
  assert.equal(rungName(strings("en"), null), "");
});
