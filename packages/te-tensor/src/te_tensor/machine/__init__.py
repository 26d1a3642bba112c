"""Kernels: formulas that run as machine code, in one pass, where processor and system allow it.

`assembler.py` knows instructions, `formula.py` arithmetic, `target.py` what processors do
differently, `compiler.py` loops and registers, and `kernel.py` how code gets into memory and is
called. `product.py`, `correlation.py` and `pooling.py` have what no formula says; `tiles.py` and
`tile_correlation.py` do it by the processor's tiles.
"""

from .batch import (
    Batch as Batch,
)
from .calls import (
    run_calls as run_calls,
)
from .chain import (
    Chain as Chain,
)
from .chain import (
    Relocatable as Relocatable,
)
from .chain import (
    Steps as Steps,
)
from .compiler import (
    LANES as LANES,
)
from .correlation import (
    OUTPUTS as OUTPUTS,
)
from .correlation import (
    correlation as correlation,
)
from .correlation import (
    sums_over_places as sums_over_places,
)
from .elementary import (
    add_kernel as add_kernel,
)
from .elementary import (
    copy_kernel as copy_kernel,
)
from .elementary import (
    fill_kernel as fill_kernel,
)
from .formula import (
    Column as Column,
)
from .formula import (
    Matrix as Matrix,
)
from .formula import (
    Scalar as Scalar,
)
from .formula import (
    Value as Value,
)
from .formula import (
    absolute as absolute,
)
from .formula import (
    exponential as exponential,
)
from .formula import (
    flipped as flipped,
)
from .formula import (
    hyperbolic_tangent as hyperbolic_tangent,
)
from .formula import (
    logarithm as logarithm,
)
from .formula import (
    logistic as logistic,
)
from .formula import (
    maximum as maximum,
)
from .formula import (
    minimum as minimum,
)
from .formula import (
    minus_times as minus_times,
)
from .formula import (
    polynomial as polynomial,
)
from .formula import (
    square_root as square_root,
)
from .formula import (
    times_plus as times_plus,
)
from .formula import (
    where_greater as where_greater,
)
from .formula import (
    with_sign as with_sign,
)
from .kernel import (
    Kernel as Kernel,
)
from .kernel import (
    kernel as kernel,
)
from .kernel import (
    kernel_info as kernel_info,
)
from .kernel import (
    runs as runs,
)
from .kernel import (
    set_kernels as set_kernels,
)
from .nest import (
    Nest as Nest,
)
from .nest import (
    Own as Own,
)
from .passes import (
    Passes as Passes,
)
from .placement import (
    Frame as Frame,
)
from .placement import (
    copied_rows as copied_rows,
)
from .placement import (
    room_for as room_for,
)
from .placement import (
    surrounded as surrounded,
)
from .pooling import (
    maxima as maxima,
)
from .pooling import (
    to_winners as to_winners,
)
from .product import (
    multiply as multiply,
)
from .product import (
    packed as packed,
)
from .program import (
    Call as Call,
)
from .program import (
    runs_programs as runs_programs,
)
from .tile_correlation import (
    correlation_calls as correlation_calls,
)
from .tile_images import (
    TiledBlock as TiledBlock,
)
from .tile_images import (
    TiledCalls as TiledCalls,
)
from .tile_places import (
    places_calls as places_calls,
)
from .tile_products import (
    Given as Given,
)
from .tile_products import (
    Laid as Laid,
)
from .tile_products import (
    Product as Product,
)
from .tile_products import (
    link_product as link_product,
)
from .tile_products import (
    share_products as share_products,
)
from .tiles import (
    LINE as LINE,
)
from .tiles import (
    SHAPES as SHAPES,
)
from .tiles import (
    ZEROS as ZEROS,
)
