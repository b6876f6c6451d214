/** Writes venta.cjs, the CommonJS form of venta.js, before packaging; `--clean` removes it afterwards. */

import { readFile, rm, writeFile } from "node:fs/promises";

const made = new URL("venta.cjs", import.meta.url);
if (process.argv.includes("--clean")) await rm(made, { force: true });
else {
  const source = await readFile(new URL("venta.js", import.meta.url), "utf8");
  const names = [...source.matchAll(/^export (?:async )?(?:class|function|const) (\w+)/gm)].map(([, name]) => name);
  await writeFile(made, `"use strict";\n${source.replace(/^export /gm, "")}\nmodule.exports = { ${names.join(", ")} };\n`);
}
