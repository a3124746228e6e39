"""Reads and writes of one variable that nothing orders, in the graph as TensorFlow runs it.

TensorFlow's graph optimizer takes control edges out of graphs with loops that it must leave in
(`dependency_optimization`): a weight is then read before or after its update, as threads happen to
run. Whether that shows is chance, and rare; whether the order is there can be read off the graph.
"""

from collections import defaultdict

# The graph after optimization is to be had through the private context alone.
from tensorflow.python.eager import context

_PASSED_ON = {"Enter", "Switch", "RefEnter", "Merge", "NextIteration", "Exit", "Identity"}
_READING = {"ReadVariableOp", "While", "If", "Case", "PartitionedCall", "StatefulPartitionedCall"}


def unordered(run):
    """Return pairs of a write and a read of one variable whose order nobody holds.

    Args:
        run: Traces, compiles and calls functions, one of which writes variables.
    """
    context.context().enable_run_metadata()
    try:
        run()
        metadata = context.context().export_run_metadata()
    finally:
        context.context().disable_run_metadata()
    found, writes = [], 0
    for each in metadata.function_graphs:
        graph = each.post_optimization_graph
        found += _of_nodes(graph.node)
        writes += sum(_is_write(node) for node in graph.node)
        for function in graph.library.function:  # the bodies of loops that stay whole
            found += _of_nodes(function.node_def)
            writes += sum(_is_write(node) for node in function.node_def)
    assert writes, "the graph that writes variables was not seen"
    return found


def _of_nodes(all_nodes):
    nodes = {node.name: node for node in all_nodes}
    inputs = {name: [_name(each) for each in node.input] for name, node in nodes.items()}
    before = {}

    def ancestors(name):
        if name not in before:
            seen, pending = set(), [name]
            while pending:
                for each in inputs.get(pending.pop(), ()):
                    if each not in seen:
                        seen.add(each)
                        pending.append(each)
            before[name] = seen
        return before[name]

    def origin(name):
        while name in nodes and nodes[name].op in _PASSED_ON:
            name = inputs[name][0]
        return name

    reads, writes = defaultdict(list), defaultdict(list)
    for name, node in nodes.items():
        if _is_write(node):
            writes[origin(inputs[name][0])].append(name)
        elif node.op in _READING:
            for each in node.input:
                if not each.startswith("^"):
                    reads[origin(_name(each))].append(name)
    return [
        (write, read)
        for handle, names in writes.items()
        for write in names
        for read in reads[handle]
        if read not in ancestors(write) and write not in ancestors(read)
    ]


def _is_write(node):
    return node.op.startswith("Assign") and node.op.endswith("VariableOp")


def _name(edge):
    return edge.lstrip("^").split(":")[0]
