"""The engine behind HTTP: an OpenAI-compatible server, `llmcourse serve`.

errors         OpenAI's error objects
fields         what each argument may be
body           from bytes to checked arguments
prompts        from the argument `prompt` to token ids
engine_thread  the engine on a thread of its own
contained      a step that fails takes down the requests in it alone
service        who is let in, and which token is whose
token_rate     tokens a second, lately
completion     a call, its requests, and their texts
endpoint       /v1/completions, whole or as server-sent events; clients that go away
status_page    /metrics
app            which path leads where
build          from a checkpoint to an engine
server         the socket, the start and the end

A program that serves something else imports `app` and `service`; nothing is imported here, so that the
scheduler can be studied without a web server.
"""
