// npm's `ai` (Vercel's AI SDK) with `@ai-sdk/openai-compatible`.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";

import {
  apiKey, assert, baseURL, City, DESCRIBE, IMAGE, model as id, MOST, Node, QUESTION, refused, REPEAT, run, Weather,
  WEATHER, WEATHER_QUESTION,
} from "./checks.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const provider = createOpenAICompatible({
  name: "llama-orch", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider(id);
const plain = { model, prompt: QUESTION, temperature: 0, maxOutputTokens: 40, maxRetries: 0 };
const called = [];
const tools = {
  get_weather: tool({
    description: "The weather of a city.",
    inputSchema: Weather,
    execute: async (given) => (called.push(given), WEATHER),
  }),
};
// The first step calls, the second one answers with what the tool said.
const round = {
  ...plain, prompt: WEATHER_QUESTION, tools, maxOutputTokens: MOST, stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => ({
    toolChoice: stepNumber === 0 ? { type: "tool", toolName: "get_weather" } : "none",
  }),
};

async function isWhole(steps, text) {
  assert(called.length === 1 && steps.length === 2 && text, called, steps.length, text);
  Weather.parse(called[0]);
}

await run({
  async check_chat() {
    const answer = await generateText(plain);
    assert(answer.text.includes("Paris") && answer.usage.outputTokens > 0, answer.text, answer.usage);
  },
  async check_stream() {
    const stream = streamText(plain);
    const parts = [];
    for await (const part of stream.textStream) parts.push(part);
    assert(parts.length > 2 && parts.join("").includes("Paris") && (await stream.usage).outputTokens > 0, parts);
  },
  async check_tools_by_object() {
    called.length = 0;
    const answer = await generateText(round);
    await isWhole(answer.steps, answer.text);
  },
  async check_tools_by_deltas() {
    called.length = 0;
    const stream = streamText(round);
    await stream.consumeStream();
    await isWhole(await stream.steps, await stream.text);
  },
  async check_structured_flat() {
    const asked = { ...plain, prompt: DESCRIBE, maxOutputTokens: MOST, output: Output.object({ schema: City }) };
    City.parse((await generateText(asked)).output);
    City.parse(await streamText(asked).output);
  },
  async check_structured_recursive() {
    const asked = { ...plain, prompt: REPEAT, maxOutputTokens: MOST, output: Output.object({ schema: Node }) };
    Node.parse((await generateText(asked)).output);
  },
  async check_structured_with_tools() {
    const answer = await generateText({
      ...plain, prompt: DESCRIBE, maxOutputTokens: MOST, tools, toolChoice: "auto",
      output: Output.object({ schema: City }),
    });
    assert(answer.toolCalls.length || City.parse(answer.output), answer.text);
  },
  async check_seeds() {
    const drawn = async () =>
      (await generateText({ ...plain, prompt: "Write a poem.", temperature: 1.5, seed: 3, maxOutputTokens: 10 })).text;
    const [one, two] = [await drawn(), await drawn()];
    assert(one === two, one, two);
  },
  async check_images_are_refused_by_name() {
    const content = [
      { type: "text", text: "What is this?" },
      { type: "image", image: IMAGE, mediaType: "image/png" },
    ];
    const error = await refused(() => generateText({ ...plain, prompt: undefined, messages: [{ role: "user", content }] }));
    assert(error.statusCode === 400 && error.responseBody.includes("image"), `${error}`, error.responseBody);
  },
});
