/** What is wrong with what was given, in words for who gave it. */
export class InputError extends Error {}

/**
 * Documents of a pasted text: a JSON list, JSON lines, or one a line; which of them is seen from the text itself.
 * Returns { documents: [{ text, name }], how }; throws InputError.
 */
export function parse(source) {
  const list = parsed(source);
  if (Array.isArray(list) && list.length && list.every(isEntry)) {
    return { documents: list.map((entry, at) => read(entry, `entry ${at + 1}`, at)), how: "a JSON list" };
  }
  const lines = source.split(/\r\n|\r|\n/).map((text, at) => ({ text, at: at + 1 })).filter(({ text }) => text.trim());
  const isObject = lines.length > 0 && isEntry(parsed(lines[0].text)) && lines[0].text.trim().startsWith("{");
  if (isObject || (lines.length && lines.every(({ text }) => isEntry(parsed(text))))) {
    return { documents: lines.map(({ text, at }, place) => read(parsed(text), `line ${at}`, place)), how: "JSON lines" };
  }
  return { documents: lines.map(({ text }, place) => ({ text, name: `${place + 1}` })), how: "one a line" };
}

/** Text of a dropped or chosen file. */
export async function readFile(file, mostBytes = 16 * 1024 * 1024) {
  if (file.size > mostBytes) throw new InputError(`${file.name} is larger than ${mostBytes / 1024 / 1024} MB`);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new InputError(`${file.name} is no UTF-8 text: drop a file of text or JSON lines`);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const isEntry = (value) => typeof value === "string" || (typeof value === "object" && value !== null && !Array.isArray(value));

function read(entry, where, place) {
  if (!isEntry(entry)) throw new InputError(`Documents: ${where} is no JSON object or string`);
  const text = typeof entry === "string" ? entry : entry.text;
  if (typeof text !== "string") throw new InputError(`Documents: ${where} has no "text"`);
  if (!text.isWellFormed()) throw new InputError(`Documents: ${where} has half a character (a lone surrogate)`);
  return { text, name: `${entry.id ?? place + 1}` };
}
