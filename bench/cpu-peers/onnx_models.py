"""Writes a layer as two ONNX models, both from logits and hidden states to the output:

- moe.onnx: ONNX Runtime's operator for a whole layer, com.microsoft MoE;
- graph.onnx: standard operators, as an exporter would write a loop over the experts.

    python onnx_models.py FOLDER

Weights stay outside the models: in the layer's weights.bin (see layer.mjs), and for the operator, which wants
gate and up row by row in turn, in moe.bin beside it.
"""

import json
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, save_model

FLOAT = TensorProto.FLOAT
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
BYTES = 4


def external(name, shape, file, offset):
    """A float32 initializer that begins so many values into a file."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", file), ("offset", offset * BYTES), ("length", int(np.prod(shape)) * BYTES)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def constant(name, values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def write(file, nodes, initializers, layer):
    hidden = helper.make_tensor_value_info("hidden", FLOAT, ["tokens", layer["hiddenSize"]])
    logits = helper.make_tensor_value_info("logits", FLOAT, ["tokens", layer["experts"]])
    output = helper.make_tensor_value_info("output", FLOAT, ["tokens", layer["hiddenSize"]])
    graph = helper.make_graph(nodes, file.stem, [hidden, logits], [output], initializers)
    save_model(helper.make_model(graph, opset_imports=OPSETS, ir_version=9), file)


def write_operator(folder, layer):
    experts, width, inner = layer["experts"], layer["hiddenSize"], layer["intermediateSize"]
    values = np.fromfile(folder / "weights.bin", dtype=np.float32, count=experts * 2 * inner * width)
    halves = values.reshape(experts, 2, inner, width)
    halves.transpose(0, 2, 1, 3).tofile(folder / "moe.bin")
    # alpha and beta make the operator's gate * sigmoid(alpha * gate) * (up + beta) what the layer has.
    node = helper.make_node(
        "MoE", ["hidden", "logits", "gate_up", "", "down"], ["output"], domain="com.microsoft",
        k=layer["topK"], normalize_routing_weights=int(layer["renormalize"]), activation_type="swiglu",
        swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0,
    )  # fmt: skip
    gate_up = external("gate_up", [experts, 2 * inner, width], "moe.bin", 0)
    down = external("down", [experts, width, inner], "weights.bin", values.size)
    write(folder / "moe.onnx", [node], [gate_up, down], layer)


def write_graph(folder, layer):
    experts, top_k = layer["experts"], layer["topK"]
    width, inner = layer["hiddenSize"], layer["intermediateSize"]
    nodes = []
    initializers = [
        constant("top_k", [top_k]), constant("last", [-1]), constant("first", [0]),
        constant("flat", [-1]), constant("column", [-1, 1]),
    ]  # fmt: skip

    def add(kind, inputs, outputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    add("Softmax", ["logits"], ["shares"], axis=-1)
    add("TopK", ["shares", "top_k"], ["top", "ids"])
    weights = "top"
    if layer["renormalize"]:
        add("ReduceSum", ["top", "last"], ["sum"], keepdims=1)
        weights = add("Div", ["top", "sum"], ["normalized"])
    add("Reshape", ["ids", "flat"], ["slot_ids"])
    add("Reshape", [weights, "column"], ["slot_weights"])
    add("Shape", ["hidden"], ["shape"])
    output = add("ConstantOfShape", ["shape"], ["zeros"])
    for e in range(experts):
        gate_up = external(f"gate_up_{e}", [2 * inner, width], "weights.bin", e * 2 * inner * width)
        down = external(f"down_{e}", [width, inner], "weights.bin", (experts * 2 + e) * inner * width)
        initializers += [constant(f"expert_{e}", [e]), gate_up, down]
        add("Equal", ["slot_ids", f"expert_{e}"], [f"is_{e}"])
        add("NonZero", [f"is_{e}"], [f"where_{e}"])
        slots = add("Squeeze", [f"where_{e}", "first"], [f"slots_{e}"])
        tokens = add("Div", [slots, "top_k"], [f"tokens_{e}"])
        rows = add("Gather", ["hidden", tokens], [f"rows_{e}"])
        both = add("Gemm", [rows, gate_up.name], [f"both_{e}"], transB=1)
        add("Split", [both], [f"gate_{e}", f"up_{e}"], axis=1, num_outputs=2)
        add("Sigmoid", [f"gate_{e}"], [f"sigmoid_{e}"])
        add("Mul", [f"gate_{e}", f"sigmoid_{e}"], [f"silu_{e}"])
        add("Mul", [f"silu_{e}", f"up_{e}"], [f"inner_{e}"])
        add("Gemm", [f"inner_{e}", down.name], [f"out_{e}"], transB=1)
        add("Gather", ["slot_weights", slots], [f"weights_{e}"])
        add("Mul", [f"out_{e}", f"weights_{e}"], [f"weighted_{e}"])
        add("Unsqueeze", [tokens, "last"], [f"index_{e}"])
        target = "output" if e == experts - 1 else f"sum_{e}"
        output = add("ScatterND", [output, f"index_{e}", f"weighted_{e}"], [target], reduction="add")
    write(folder / "graph.onnx", nodes, initializers, layer)


def main():
    folder = Path(sys.argv[1])
    layer = json.loads((folder / "layer.json").read_text())
    write_operator(folder, layer)
    write_graph(folder, layer)


if __name__ == "__main__":
    main()
