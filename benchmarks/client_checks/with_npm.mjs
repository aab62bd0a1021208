// npm's `openai` and `@ai-sdk/openai-compatible`.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, base, model, key] = process.argv.slice(2);
const require = createRequire(modules + "/package.json");
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const found = [];
async function check(name, work) {
  try { await work(); found.push({ check: name, passed: true }); }
  catch (error) { found.push({ check: name, passed: false, why: String(error && error.stack || error).slice(0, 800) }); }
}
function require_(truth, words) { if (!truth) throw new Error(words || "it is not so"); }
const city = { type: "object", properties: { city: { type: "string", enum: ["Ulm", "Bern"] } }, required: ["city"], additionalProperties: false };
const tool = { type: "function", function: { name: "weather", parameters: city } };
const messages = [{ role: "user", content: "Say something short." }];
const isCity = (text) => require_(["Ulm", "Bern"].includes(JSON.parse(text).city), text);

const { default: OpenAI } = await load("openai");
const client = new OpenAI({ baseURL: base + "/v1", apiKey: key, maxRetries: 0 });
await check("openai: models", async () => { const ids = []; for await (const each of client.models.list()) ids.push(each.id); require_(ids.includes(model)); });
await check("openai: chat", async () => { const answer = await client.chat.completions.create({ model, messages, max_tokens: 12 }); require_(typeof answer.choices[0].message.content === "string"); });
await check("openai: chat streamed", async () => { let text = ""; for await (const event of await client.chat.completions.create({ model, messages, max_tokens: 12, stream: true })) text += event.choices[0]?.delta?.content ?? ""; require_(text.length > 0); });
await check("openai: json_schema", async () => { const answer = await client.chat.completions.create({ model, messages, max_tokens: 60, response_format: { type: "json_schema", json_schema: { name: "city", schema: city } } }); isCity(answer.choices[0].message.content); });
await check("openai: tools", async () => { const answer = await client.chat.completions.create({ model, messages, max_tokens: 60, tools: [tool], tool_choice: { type: "function", function: { name: "weather" } } }); isCity(answer.choices[0].message.tool_calls[0].function.arguments); });
await check("openai: responses", async () => { const answer = await client.responses.create({ model, input: "Hi", max_output_tokens: 12 }); require_(answer.output_text.length > 0); });
await check("openai: responses streamed", async () => { let text = ""; for await (const event of await client.responses.create({ model, input: "Hi", max_output_tokens: 12, stream: true })) if (event.type === "response.output_text.delta") text += event.delta; require_(text.length > 0); });
await check("openai: an error has its status", async () => { try { await client.chat.completions.create({ model, messages, temperature: 99 }); } catch (error) { require_(error.status === 400); return; } throw new Error("it was answered"); });

await check("openai: tools streamed", async () => { let text = ""; for await (const event of await client.chat.completions.create({ model, messages, max_tokens: 60, tools: [tool], tool_choice: { type: "function", function: { name: "weather" } }, stream: true })) text += event.choices[0]?.delta?.tool_calls?.[0]?.function?.arguments ?? ""; isCity(text); });
await check("openai: completions", async () => { const answer = await client.completions.create({ model, prompt: ["One", "Two"], max_tokens: 6 }); require_(answer.choices.length === 2); });

const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const ai = await load("ai");
const { z } = await load("zod");
const provider = createOpenAICompatible({ name: "stillroom", baseURL: base + "/v1", apiKey: key, supportsStructuredOutputs: true });
await check("ai-sdk: generateText", async () => { const answer = await ai.generateText({ model: provider(model), prompt: "Hi", maxOutputTokens: 12 }); require_(typeof answer.text === "string"); });
await check("ai-sdk: streamText", async () => { let text = ""; for await (const part of ai.streamText({ model: provider(model), prompt: "Hi", maxOutputTokens: 12 }).textStream) text += part; require_(text.length > 0); });
await check("ai-sdk: an object by zod", async () => { const answer = await ai.generateText({ model: provider(model), prompt: "Hi", maxOutputTokens: 100, output: ai.Output.object({ schema: z.object({ city: z.enum(["Ulm", "Bern"]) }) }) }); require_(["Ulm", "Bern"].includes(answer.output.city)); });
await check("ai-sdk: a tool", async () => { const weather = ai.tool({ description: "The weather", inputSchema: z.object({ city: z.enum(["Ulm", "Bern"]) }) }); const answer = await ai.generateText({ model: provider(model), prompt: "Hi", maxOutputTokens: 100, tools: { weather }, toolChoice: { type: "tool", toolName: "weather" } }); require_(answer.toolCalls.length > 0); });
await check("ai-sdk: an object streamed", async () => { const answer = ai.streamText({ model: provider(model), prompt: "Hi", maxOutputTokens: 100, output: ai.Output.object({ schema: z.object({ city: z.enum(["Ulm", "Bern"]) }) }) }); await answer.consumeStream(); require_(["Ulm", "Bern"].includes((await answer.output).city)); });
await check("ai-sdk: a tool that is run, and its result", async () => { const weather = ai.tool({ description: "The weather", inputSchema: z.object({ city: z.enum(["Ulm", "Bern"]) }), execute: async () => "sunny" }); const answer = await ai.generateText({ model: provider(model), prompt: "Hi", maxOutputTokens: 100, tools: { weather }, stopWhen: ai.stepCountIs(2), prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? { type: "tool", toolName: "weather" } : "none" }) }); require_(answer.steps.length === 2, JSON.stringify(answer.steps.length)); });
await check("ai-sdk: usage", async () => { const answer = await ai.generateText({ model: provider(model), prompt: "Hi", maxOutputTokens: 5 }); require_(answer.usage.outputTokens > 0); });
await check("ai-sdk: completion model", async () => { const answer = await ai.generateText({ model: provider.completionModel(model), prompt: "Once", maxOutputTokens: 6 }); require_(answer.text.length > 0); });
console.log("\n" + JSON.stringify(found));
