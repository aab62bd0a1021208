// JSON schemas as zod 4 writes them: every type, within every wrapper.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.argv[2] + "/package.json");
const { z } = await import(pathToFileURL(require.resolve("zod")).href);
const types = {
  string: z.string(), min: z.string().min(2), max: z.string().max(40), length: z.string().length(5), regex: z.string().regex(/^[a-z]+-\d{2,4}$/),
  regex_max: z.string().regex(/^[A-Z]/).max(9), starts: z.string().startsWith("ab"), ends: z.string().endsWith("yz"), includes: z.string().includes("mid"),
  email: z.email(), uuid: z.uuid(), guid: z.guid(), url: z.url(), ipv4: z.ipv4(), ipv6: z.ipv6(), cidrv4: z.cidrv4(), date: z.iso.date(), time: z.iso.time(),
  datetime: z.iso.datetime(), duration: z.iso.duration(), base64: z.base64(), base64url: z.base64url(), nanoid: z.nanoid(), cuid: z.cuid(), cuid2: z.cuid2(),
  ulid: z.ulid(), emoji: z.emoji(), e164: z.e164(), jwt: z.jwt(), hex: z.hex ? z.hex() : z.string(), lowercase: z.string().lowercase(), uppercase: z.string().uppercase(),
  number: z.number(), int: z.int(), int32: z.int32(), uint32: z.uint32(), float32: z.float32(), positive: z.number().positive(), negative: z.number().negative(),
  nonnegative: z.number().nonnegative(), range: z.number().min(-3).max(7.5), int_range: z.int().min(1).max(99), multiple: z.number().multipleOf(5),
  boolean: z.boolean(), null: z.null(), any: z.any(), unknown: z.unknown(), literal: z.literal("a"), literals: z.literal(["a", 5, true]), enum: z.enum(["a", "b", "c"]),
  template: z.templateLiteral(["v", z.number()]), tuple: z.tuple([z.string().max(4), z.int()]), rest: z.tuple([z.boolean()], z.int()),
  record: z.record(z.string(), z.int()), record_enum: z.record(z.enum(["a", "b"]), z.int()), partial: z.partialRecord(z.enum(["a", "b"]), z.boolean()),
  object: z.object({ a: z.int(), b: z.string().max(9).optional() }), strict: z.strictObject({ a: z.boolean() }), loose: z.looseObject({ a: z.boolean() }),
  catchall: z.object({ a: z.int() }).catchall(z.boolean()), union: z.union([z.int(), z.boolean()]), discriminated: z.discriminatedUnion("k", [z.object({ k: z.literal("a"), x: z.int() }), z.object({ k: z.literal("b") })]),
  intersection: z.intersection(z.object({ a: z.int() }), z.object({ b: z.boolean() })), array: z.array(z.int()), array_bounds: z.array(z.boolean()).min(1).max(3),
  nonempty: z.array(z.enum(["x", "y"])).nonempty(), described: z.int().describe("A number"), branded: z.string().max(5).brand("x"), readonly: z.object({ a: z.int() }).readonly(),
};
const wrappers = {
  field: (t) => z.object({ v: t }), optional: (t) => z.object({ v: t.optional(), w: z.boolean() }), nullable: (t) => z.object({ v: t.nullable() }),
  list: (t) => z.object({ v: z.array(t).max(3) }), union: (t) => z.object({ v: z.union([z.boolean(), t]) }), nested: (t) => z.strictObject({ o: z.strictObject({ v: t }) }),
  record: (t) => z.object({ v: z.record(z.string(), t) }), pair: (t) => z.object({ v: z.tuple([t, z.boolean()]) }),
};
const made = [];
for (const [name, type] of Object.entries(types)) for (const [outer, wrap] of Object.entries(wrappers)) {
  try { made.push({ name: name + " in " + outer, schema: z.toJSONSchema(wrap(type)) }); } catch { /* zod itself has no JSON schema for it */ }
}
console.log(JSON.stringify(made));
