"""The picture of a graph."""

import te_tensor as te


def test_every_operation_and_leaf_is_drawn_once():
    x = te.ones(2, 3, requires_grad=True)
    w = te.ones(3, 4, requires_grad=True)
    y = x @ w
    z = (y * y).sum()
    dot = te.to_dot(z)
    assert dot.startswith("digraph {\n")
    assert dot.endswith("\n}")
    for name in ("MatMul", "Mul", "Sum"):
        assert dot.count(f'label="{name}"') == 1
    assert dot.count("Tensor\\n") == 2
    assert dot.count("->") == 6  # x, w; y twice; the product; the result
    assert '"(2, 3)"' in dot
    assert dot.count("{") == dot.count("}") == 1
    assert "result\\n() float32" in dot


def test_edges_join_what_they_should():
    x = te.ones(2, requires_grad=True)
    assert te.to_dot(x.exp()) == "\n".join(
        [
            "digraph {",
            '  n0 [label="Tensor\\n(2,) float32" shape=ellipse];',
            '  n1 [label="Exp" shape=box];',
            '  n0 -> n1 [label="(2,)"];',
            '  n2 [label="result\\n(2,) float32" shape=ellipse];',
            '  n1 -> n2 [label="(2,)"];',
            "}",
        ]
    )


def test_a_leaf_alone():
    assert te.to_dot(te.ones(2)).count("n0") == 1
    assert "->" not in te.to_dot(te.ones(2))


def test_a_traced_graph_is_drawn():
    with te.trace():
        y = te.ones(2).exp().log()
    assert te.to_dot(y).count("->") == 3


def test_a_long_chain_is_drawn():
    x = te.ones(1, requires_grad=True)
    for _ in range(5000):
        x = x + 1.0
    assert te.to_dot(x).count('label="Add"') == 5000


def test_several_outputs_share_a_box():
    class Two(te.Operation):
        def forward(self, x):
            return x, x * 2

    a, b = te.Tensor.apply(Two(), te.ones(2, requires_grad=True))
    assert te.to_dot(a + b).count('label="Two"') == 1
