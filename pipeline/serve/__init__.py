"""`wordmill serve`: models over HTTP, as OpenAI's completions and as a page to play with."""
