// What the scripts for Node share: the same questions as checks.py, and a line of JSON for how each check ended.

import { z } from "zod";

export const { CLIENTS_BASE_URL: baseURL, CLIENTS_API_KEY: apiKey, CLIENTS_MODEL: model } = process.env;
export const QUESTION = "What is the capital of France? Answer in one short sentence.";
export const WEATHER_QUESTION = "What is the weather in Paris, in celsius?";
export const WEATHER = "It is 21 degrees and sunny in Paris.";
export const REPEAT = 'Repeat this JSON and nothing else: {"value": 7, "next": {"value": 8, "next": null}}';
export const DESCRIBE = "Describe Paris as JSON with name, country and whether it lies at the sea.";
// A picture of one pixel.
export const IMAGE =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
export const MOST = 300;

export const City = z.object({
  name: z.string().max(30),
  country: z.enum(["France", "Italy", "Japan"]),
  at_the_sea: z.boolean(),
});
export const Node = z.object({
  value: z.number().int().min(0).max(99),
  get next() {
    return Node.nullable();
  },
});
export const Weather = z.object({ city: z.string().max(30), unit: z.enum(["celsius", "fahrenheit"]) });

export function assert(condition, ...why) {
  if (!condition) throw new Error(`not so: ${why.map((one) => JSON.stringify(one)).join(" ")}`);
}

/** Fails where `work` is not refused; returns the refusal. */
export async function refused(work) {
  try {
    await work();
  } catch (error) {
    return error;
  }
  throw new Error("it was not refused");
}

/** Runs the checks one after the other, and tells how each ended. */
export async function run(checks) {
  for (const [check, work] of Object.entries(checks)) {
    let why = "";
    try {
      await work();
    } catch (error) {
      why = `${error?.stack ?? error}\n${error?.responseBody ?? ""}`;
    }
    process.stdout.write(JSON.stringify({ check, why }) + "\n");
  }
}
