"""From a request to orders for the engine, within bounds, and back to OpenAI's shapes."""
