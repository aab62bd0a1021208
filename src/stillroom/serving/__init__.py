"""The server: the OpenAI API, the chat page, sessions."""
