// npm's `openai`.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import {
  apiKey, assert, baseURL, City, DESCRIBE, IMAGE, model, MOST, Node, QUESTION, refused, REPEAT, run, Weather, WEATHER,
  WEATHER_QUESTION,
} from "./checks.mjs";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 120_000 });
const chats = client.chat.completions;
const ask = (content) => [{ role: "user", content }];
const tool = {
  type: "function",
  function: { name: "get_weather", description: "The weather of a city.", parameters: z.toJSONSchema(Weather) },
};
const forCall = {
  model, messages: ask(WEATHER_QUESTION), tools: [tool], tool_choice: "required", parallel_tool_calls: false,
  temperature: 0, max_tokens: MOST,
};

async function isAnswered(message) {
  const [call] = message.tool_calls;
  assert(message.tool_calls.length === 1 && call.function.name === "get_weather", message);
  Weather.parse(JSON.parse(call.function.arguments));
  const said = { role: "tool", tool_call_id: call.id, content: WEATHER };
  const answer = await chats.create({
    ...forCall, messages: [...ask(WEATHER_QUESTION), message, said], tool_choice: "none", max_tokens: 40,
  });
  assert(answer.choices[0].message.content, answer);
}

const parsed = async (schema, question, more = {}) =>
  (await chats.parse({
    model, messages: ask(question), response_format: zodResponseFormat(schema, "wanted"), temperature: 0,
    max_tokens: MOST, ...more,
  })).choices[0].message;

await run({
  async check_models() {
    const ids = [];
    for await (const one of client.models.list()) ids.push(one.id);
    assert(ids.includes(model), ids);
    assert((await client.models.retrieve(model)).id === model);
  },
  async check_chat() {
    const answer = await chats.create({ model, messages: ask(QUESTION), temperature: 0, max_tokens: 40 });
    assert(answer.choices[0].message.content.includes("Paris"), answer);
  },
  async check_stream() {
    let text = "", usage;
    const stream = await chats.create({
      model, messages: ask(QUESTION), temperature: 0, max_tokens: 40, stream: true,
      stream_options: { include_usage: true },
    });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert(text.includes("Paris") && usage.completion_tokens > 0, text, usage);
  },
  async check_tools_by_object() {
    await isAnswered((await chats.create(forCall)).choices[0].message);
  },
  async check_tools_by_deltas() {
    await isAnswered(await chats.stream(forCall).finalMessage());
  },
  async check_tools_by_runner() {
    const asked = [];
    const runner = chats.runTools({
      model, messages: ask(WEATHER_QUESTION), temperature: 0, max_tokens: MOST,
      tool_choice: { type: "function", function: { name: "get_weather" } },
      tools: [{
        type: "function",
        function: {
          ...tool.function, parse: JSON.parse, function: (given) => (asked.push(Weather.parse(given)), WEATHER),
        },
      }],
    });
    await runner.done();
    assert(asked.length === 1, asked);
  },
  async check_structured_flat() {
    City.parse((await parsed(City, DESCRIBE)).parsed);
  },
  async check_structured_recursive() {
    Node.parse((await parsed(Node, REPEAT)).parsed);
  },
  async check_structured_with_tools() {
    const strict = { ...tool, function: { ...tool.function, strict: true } };
    const message = await parsed(City, DESCRIBE, { tools: [strict] });
    assert(message.tool_calls?.length || City.parse(message.parsed), message);
  },
  async check_n() {
    const answer = await chats.create({ model, messages: ask(QUESTION), n: 2, seed: 1, max_tokens: 8 });
    assert(answer.choices.length === 2, answer);
  },
  async check_seeds() {
    const drawn = async () => (await chats.create({
      model, messages: ask("Write a poem."), temperature: 1.5, seed: 3, max_tokens: 10,
    })).choices[0].message.content;
    const [one, two] = [await drawn(), await drawn()];
    assert(one === two, one, two);
  },
  async check_images_are_refused_by_name() {
    const content = [
      { type: "text", text: "What is this?" },
      { type: "image_url", image_url: { url: `data:image/png;base64,${IMAGE}` } },
    ];
    const error = await refused(() => chats.create({ model, messages: ask(content), max_tokens: 5 }));
    assert(error instanceof OpenAI.BadRequestError && error.message.includes("image") && error.code, `${error}`);
  },
});
