// The real npm clients `openai` and `@ai-sdk/openai-compatible` against a server: node client.mjs MODULES ADDRESS.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
const [modules, address] = process.argv.slice(2);
const require = createRequire(modules + "/");
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const OpenAI = (await load("openai")).default;
const client = new OpenAI({ baseURL: address + "/v1", apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Say something." }];
const tools = [{ type: "function", function: { name: "add", parameters: { type: "object", properties: { a: { type: "integer", maximum: 99 } }, required: ["a"] } } }];
const seen = {};
const answer = await client.chat.completions.create({ model, messages, max_tokens: 6 });
seen.usage = answer.usage.completion_tokens > 0;
let usage = 0;
for await (const piece of await client.chat.completions.create({ model, messages, max_tokens: 6, stream: true, stream_options: { include_usage: true } })) usage = piece.usage?.completion_tokens ?? usage;
seen.stream = usage > 0;
const called = await client.chat.completions.create({ model, messages, max_tokens: 120, tools, tool_choice: "required", parallel_tool_calls: false });
seen.call = Number.isInteger(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).a);
const streamed = client.chat.completions.stream({ model, messages, max_tokens: 120, tools, tool_choice: { type: "function", function: { name: "add" } } });
const whole = await streamed.finalChatCompletion();
seen.streamedCall = whole.choices[0].message.tool_calls[0].function.name === "add";
try {
  const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
  const { generateText, streamText } = await load("ai");
  const provider = createOpenAICompatible({ name: "stillroom", baseURL: address + "/v1", includeUsage: true });
  const text = await generateText({ model: provider(model), prompt: "Say something.", maxOutputTokens: 6, maxRetries: 0 });
  seen.aiSdk = typeof text.text === "string" && text.usage.outputTokens > 0;
  const stream = streamText({ model: provider(model), prompt: "Say something.", maxOutputTokens: 6, maxRetries: 0 });
  let said = "";
  for await (const piece of stream.textStream) said += piece;
  seen.aiSdkStream = (await stream.usage).outputTokens > 0;
} catch (error) { seen.aiSdk = String(error); }
console.log(JSON.stringify(seen));
