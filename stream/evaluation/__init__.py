"""How good the models are on somebody's own events, scored before learned.

Beside ours stand River's models, the batch method and the trivial baseline.

Each kind is a module with `add(parser)` and `main(arguments, settings) -> int`, like a command.
"""
