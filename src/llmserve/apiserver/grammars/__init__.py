"""Compiles the grammars of requests (structured output) before an engine is asked.

    GrammarCheck (apiserver) -> GrammarProcess -> ForkServer -> a child for each grammar -> GrammarCompiler

Compiling is native code on what a client wrote: it can take minutes, gigabytes or the process with it. In a
child it takes its own limits only; the engine then compiles what has been seen to compile.
"""
