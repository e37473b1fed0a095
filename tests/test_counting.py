"""Operations that the benchmarks count."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.counting import Operations, compulsory_bytes, operations

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))


def test_products_and_elements():
    assert operations(lambda a, b: a @ b, A, B) == Operations(matrix=2 * 3 * 4 * 5)
    assert operations(lambda a: jnp.exp(a + a).T, A) == Operations(simple=12, special=12)
    assert operations(lambda a: jnp.sum(a[:, 1:]), A) == Operations(simple=9)
    assert operations(lambda i: i + 1, jnp.arange(3)) == Operations()


def test_factorizations():
    square = jnp.eye(6)
    assert operations(jax.lax.linalg.cholesky, square).matrix == pytest.approx(6**3 / 3)
    solve = jax.lax.linalg.triangular_solve
    assert operations(lambda a, b: solve(a, b, left_side=True), square, jnp.ones((6, 2))) == (
        Operations(matrix=6 * 6 * 2)
    )


def test_loops_count_as_often_as_they_run():
    def step(x, y):
        return jax.lax.cond(y[0, 0] > 0, lambda x: x * y, lambda x: x + jnp.sin(x), x), None

    once = operations(lambda x: step(x, x)[0], A)
    assert once == Operations(simple=12 + 1, special=12)  # the dearer branch, and a comparison
    many = operations(lambda x: jax.lax.scan(step, x, jnp.ones((7, 3, 4)))[0], A)
    assert many == once.times(7)
    with pytest.raises(ValueError, match="unknown length"):
        operations(lambda x: jax.lax.while_loop(lambda x: x[0] < 3, lambda x: x + 1, x), A[0])


def test_bytes_are_those_of_arguments_and_results():
    assert compulsory_bytes(lambda a, b: a @ b, A, B) == 8 * (12 + 20 + 15)
