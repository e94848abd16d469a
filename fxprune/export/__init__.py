"""Out of the graph again: TorchScript, ``torch.export``, ONNX.

In: a captured graph, masked, finalized or shrunk. Out: a ``ScriptModule``, an ``ExportedProgram`` or an ONNX program.

Read ``formats.py`` first, then ``scriptable.py`` (the graph as TorchScript can compile it).
Tests: ``tests/export``.
"""
