"""What numba has no words for: streaming stores, compare-and-swap on array elements, the cipher's symbols.

Everything here is an intrinsic (inlined, cacheable) or an external symbol registered with LLVM under a fixed name.
Pointers handed to Python objects at run time would make the callers uncacheable.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import llvmlite.binding as llvm
import nacl._sodium as _sodium
import nacl.bindings  # noqa: F401  importing it runs sodium_init(); without it the portable code runs, 300 times slower
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lazypv_kernels.layout import PAGE_SIZE

_LINE = 64
BITS: Final = 64
"""Elements that :func:`bits_equal` looks at."""

ARGUMENTS_READ: Final[dict[str, tuple[int, ...]]] = {
    "load_acquire": (0,),
    "stream_copy_page": (2,),
    "bits_equal": (0,),
    "load_entry": (0,),
    "maps_eight": (0,),
    "table_size": (0,),
}
"""Intrinsics, and accessors of page tables, that only read an array, by name: the positions of such arguments."""


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _flat(array_type: Any) -> bool:
    return isinstance(array_type, types.Array) and array_type.ndim == 1 and array_type.layout == "C"


@intrinsic
def compare_and_swap(_context: Any, array: Any, index: Any, expected: Any, new: Any) -> Any:
    """``array[index]``: if it is `expected`, make it `new`; true when done. Sequentially consistent."""
    if not (_flat(array) and isinstance(array.dtype, types.Integer)):
        return None
    element = array.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        result = builder.cmpxchg(pointer, args[2], args[3], "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(result, 1), context.get_value_type(types.boolean))

    return types.boolean(array, types.intp, element, element), codegen


@intrinsic
def exchange(_context: Any, array: Any, index: Any, new: Any) -> Any:
    """Put `new` into ``array[index]`` and give back what was there. Sequentially consistent."""
    if not _flat(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        return builder.atomic_rmw("xchg", pointer, args[2], "seq_cst")

    return array.dtype(array, types.intp, array.dtype), codegen


@intrinsic
def add_and_fetch_old(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Add to ``array[index]`` and give back what was there before. Sequentially consistent."""
    if not _flat(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return array.dtype(array, types.intp, array.dtype), codegen


@intrinsic
def load_acquire(_context: Any, array: Any, index: Any) -> Any:
    """``array[index]`` as it is now: never hoisted out of a loop, nothing after it moves before it."""
    if not _flat(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        width = signature.return_type.bitwidth // 8
        return builder.load_atomic(pointer, "acquire", width)

    return array.dtype(array, types.intp), codegen


@intrinsic
def store_release(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index] = value``, after everything before it."""
    if not _flat(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        builder.store_atomic(args[2], pointer, "release", signature.args[2].bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), codegen


@intrinsic
def fence(_context: Any) -> Any:
    """Everything stored before, streaming stores included, is visible before anything stored after."""

    def codegen(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def bits_equal(_context: Any, array: Any, at: Any, mask: Any, value: Any) -> Any:
    """64 elements of `array` from `at` on as a word: bit k says whether ``array[at + k] & mask == value``.

    One compare of vectors and one move of its mask, wherever there are vectors; LLVM cuts it for those that there are.
    """
    if not (_flat(array) and isinstance(array.dtype, types.Integer)):
        return None
    element = array.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.IntType(element.bitwidth)
        vector = ir.VectorType(kind, BITS)
        pointer = builder.bitcast(_element(context, builder, signature.args[0], args[0], args[1]), vector.as_pointer())
        seen = builder.load(pointer, align=element.bitwidth // 8)
        equal = builder.icmp_unsigned("==", builder.and_(seen, _all(builder, vector, args[2])),
                                      _all(builder, vector, args[3]))  # fmt: skip
        return builder.bitcast(equal, ir.IntType(BITS))

    return types.uint64(array, types.intp, element, element), codegen


def _all(builder: Any, vector: Any, scalar: Any) -> Any:
    """A vector all of whose elements are `scalar`."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)


@intrinsic
def count_bits(_context: Any, word: Any) -> Any:
    """How many bits of a word are set."""

    def codegen(_c: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@intrinsic
def lowest_bit(_context: Any, word: Any) -> Any:
    """Number of the lowest set bit of a word; 64 if there is none."""

    def codegen(_c: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), codegen


@intrinsic
def relax(_context: Any) -> Any:
    """A pause in a loop that waits for another core; a compiler barrier."""

    def codegen(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        arch = llvm.get_process_triple().split("-")[0]
        if arch == "x86_64":
            pause = builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), []))
            builder.call(pause, [])
        elif arch in ("aarch64", "arm64"):
            hint_type = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            hint = builder.module.declare_intrinsic("llvm.aarch64.hint", (), hint_type)
            builder.call(hint, [ir.Constant(ir.IntType(32), 1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def stream_zero_page(_context: Any, contents: Any, frame: Any) -> Any:
    """Clear row `frame` of ``uint8[n, 4096]`` or words with streaming stores; the caller fences before it publishes.

    Cached stores pay a read for ownership of memory that nobody is going to read: a third of the speed.
    """
    if not (isinstance(contents, types.Array) and contents.ndim == 2 and contents.layout == "C"):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        row = PAGE_SIZE // (signature.args[0].dtype.bitwidth // 8)
        start = builder.bitcast(
            builder.gep(data, [builder.mul(args[1], args[1].type(row))]), ir.IntType(8).as_pointer()
        )
        vector = ir.VectorType(ir.IntType(64), _LINE // 8)
        zero = ir.Constant(vector, None)
        hint = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, ir.Constant(ir.IntType(64), PAGE_SIZE // _LINE)) as loop:
            offset = builder.mul(loop.index, ir.Constant(ir.IntType(64), _LINE))
            line = builder.bitcast(builder.gep(start, [offset]), vector.as_pointer())
            builder.store(zero, line, align=_LINE).set_metadata("nontemporal", hint)
        return context.get_dummy_value()

    return types.void(contents, types.intp), codegen


@intrinsic
def stream_copy_page(_context: Any, contents: Any, frame: Any, source: Any, row: Any) -> Any:
    """Copy row `row` of `source` to row `frame` of `contents` (both uint64[n, 512]) with streaming stores.

    The caller fences before anybody may look.
    """
    arrays = (contents, source)
    if not all(isinstance(each, types.Array) and each.ndim == 2 and each.layout == "C" for each in arrays):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def start(array_type: Any, array: Any, index: Any) -> Any:
            data = context.make_array(array_type)(context, builder, array).data
            step = PAGE_SIZE // (array_type.dtype.bitwidth // 8)
            return builder.gep(data, [builder.mul(index, index.type(step))])

        vector = ir.VectorType(ir.IntType(64), _LINE // 8)
        byte = ir.IntType(8).as_pointer()
        to = builder.bitcast(start(signature.args[0], args[0], args[1]), byte)
        of = builder.bitcast(start(signature.args[2], args[2], args[3]), byte)
        hint = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, ir.Constant(ir.IntType(64), PAGE_SIZE // _LINE)) as loop:
            offset = builder.mul(loop.index, ir.Constant(ir.IntType(64), _LINE))
            line = builder.load(builder.bitcast(builder.gep(of, [offset]), vector.as_pointer()), align=1)
            target = builder.bitcast(builder.gep(to, [offset]), vector.as_pointer())
            builder.store(line, target, align=_LINE).set_metadata("nontemporal", hint)
        return context.get_dummy_value()

    return types.void(contents, types.intp, source, types.intp), codegen


@intrinsic
def address_of(_context: Any, array: Any, index: Any) -> Any:
    """Address of ``array[index]`` of a one-dimensional array, or of row `index` of a two-dimensional one."""
    if not (isinstance(array, types.Array) and array.ndim in (1, 2) and array.layout == "C"):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        view = context.make_array(array_type)(context, builder, args[0])
        index = args[1]
        if array_type.ndim == 2:
            index = builder.mul(index, cgutils.unpack_tuple(builder, view.shape)[1])
        return builder.ptrtoint(builder.gep(view.data, [index]), ir.IntType(64))

    return types.uint64(array, types.intp), codegen


@intrinsic
def copy_bytes(_context: Any, to: Any, of: Any, size: Any) -> Any:
    """The C library's memcpy, between addresses."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        cgutils.raw_memcpy(builder, _at(builder, args[0], 8), _at(builder, args[1], 8), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.intp), codegen


@intrinsic
def clear_bytes(_context: Any, address: Any, size: Any) -> Any:
    """The C library's memset to zero, at an address."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        cgutils.memset(builder, _at(builder, args[0], 8), args[1], 0)
        return context.get_dummy_value()

    return types.void(types.uint64, types.intp), codegen


def _at(builder: Any, address: Any, bits: int) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _load_at(kind: Any) -> Any:
    @intrinsic
    def load(_context: Any, address: Any) -> Any:
        def codegen(_c: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.load_atomic(_at(builder, args[0], kind.bitwidth), "acquire", kind.bitwidth // 8)

        return kind(types.uint64), codegen

    return load


def _store_at(kind: Any) -> Any:
    @intrinsic
    def store(_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            builder.store_atomic(args[1], _at(builder, args[0], kind.bitwidth), "release", kind.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(types.uint64, kind), codegen

    return store


def _swap_at(kind: Any) -> Any:
    @intrinsic
    def swap(_context: Any, address: Any, expected: Any, new: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            pointer = _at(builder, args[0], kind.bitwidth)
            result = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
            return builder.zext(builder.extract_value(result, 1), context.get_value_type(types.boolean))

        return types.boolean(types.uint64, kind, kind), codegen

    return swap


load_word_at, store_word_at, swap_word_at = _load_at(types.uint64), _store_at(types.uint64), _swap_at(types.uint64)
load_half_at, store_half_at = _load_at(types.uint32), _store_at(types.uint32)
load_byte_at, store_byte_at, swap_byte_at = _load_at(types.uint8), _store_at(types.uint8), _swap_at(types.uint8)


@intrinsic
def call_reader(_context: Any, function: Any, handle: Any, target: Any, size: Any, offset: Any) -> Any:
    """What stands at address `function`: ``ssize_t function(int handle, void *target, size_t size, off_t offset)``."""
    word = ir.IntType(64)
    kind = ir.FunctionType(word, [ir.IntType(32), word, word, word])

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        called = builder.inttoptr(args[0], kind.as_pointer())
        return builder.call(called, [builder.trunc(args[1], ir.IntType(32)), *args[2:]])

    return types.int64(types.int64, types.int64, types.uint64, types.int64, types.int64), codegen


# --- the cipher: AEGIS-256 from libsodium, as PyNaCl carries it --------------------------------------------------


def register_sodium(name: str) -> str:
    """Tell LLVM where libsodium's `name` lies; the symbol that kernels call."""
    library = ctypes.CDLL(_sodium.__file__)
    try:
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except AttributeError:
        # A wheel that hides its symbols still gives the combined-mode functions through cffi.
        address = int(_sodium.ffi.cast("uintptr_t", _sodium.ffi.addressof(_sodium.lib, name)))
    symbol = f"lazypv_{name}"
    llvm.add_symbol(symbol, address)
    return symbol


_u64, _i32 = types.uint64, types.int32

# int encrypt(c, clen_p, m, mlen, ad, adlen, nsec, npub, k): ciphertext and tag behind it.
aegis256_encrypt = types.ExternalFunction(
    register_sodium("crypto_aead_aegis256_encrypt"), _i32(_u64, _u64, _u64, _u64, _u64, _u64, _u64, _u64, _u64)
)
# int decrypt(m, mlen_p, nsec, c, clen, ad, adlen, npub, k): -1 when the tag does not fit.
aegis256_decrypt = types.ExternalFunction(
    register_sodium("crypto_aead_aegis256_decrypt"), _i32(_u64, _u64, _u64, _u64, _u64, _u64, _u64, _u64, _u64)
)
