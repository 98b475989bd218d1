# Written by `python build_cffi.py --stub` from the headers in pyiommufd/uapi: change those.

from typing import Any, Final, final, type_check_only

from _cffi_backend import FFI

# Which fields a struct has, only C knows: Any.
@type_check_only
class _FFI(FFI):
    def new(self, cdecl: str | FFI.CType, init: Any = ...) -> Any: ...
    def cast(self, cdecl: str | FFI.CType, value: FFI.CData | int) -> Any: ...

# Its constants are in pyiommufd.uapi.
@final
@type_check_only
class _Lib:
    def pyiommufd_raw_ioctl(self, fd: int, request: int, argument: FFI.CData, /) -> int: ...
    def pyiommufd_file_open(self, file: FFI.CData, path: FFI.CData | bytes, flags: int, /) -> int: ...
    def pyiommufd_file_eventfd(self, file: FFI.CData, /) -> int: ...
    def pyiommufd_file_memfd(
        self,
        file: FFI.CData,
        name: FFI.CData | bytes,
        flags: int,
        length: int,
        /,
    ) -> int: ...
    def pyiommufd_file_duplicate(self, file: FFI.CData, other: FFI.CData, /) -> int: ...
    def pyiommufd_file_close(self, file: FFI.CData, /) -> int: ...
    def pyiommufd_file_free(self, file: FFI.CData, /) -> None: ...
    def pyiommufd_file_forked(self, file: FFI.CData, /) -> None: ...
    def pyiommufd_file_same(self, file: FFI.CData, other: FFI.CData, /) -> int: ...
    def pyiommufd_file_wait(self, file: FFI.CData, milliseconds: int, /) -> int: ...
    def pyiommufd_file_waker(self, file: FFI.CData, copy: FFI.CData, /) -> int: ...
    def pyiommufd_file_readable(self, file: FFI.CData, /) -> int: ...
    def pyiommufd_file_read(
        self,
        file: FFI.CData,
        memory: FFI.CData,
        length: int,
        offset: int,
        done: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_file_write(
        self,
        file: FFI.CData,
        memory: FFI.CData | bytes,
        length: int,
        offset: int,
        /,
    ) -> int: ...
    def pyiommufd_file_change16(self, file: FFI.CData, offset: int, bits: int, on: int, /) -> int: ...
    def pyiommufd_ioctl(self, file: FFI.CData, request: int, argument: FFI.CData, /) -> int: ...
    def pyiommufd_make(
        self,
        object_: FFI.CData,
        request: int,
        command: FFI.CData,
        id_at: int,
        uses: FFI.CData,
        count: int,
        queue: FFI.CData,
        fd_at: int,
        /,
    ) -> int: ...
    def pyiommufd_object_ioctl(
        self,
        object_: FFI.CData,
        request: int,
        command: FFI.CData,
        id_at: int,
        /,
    ) -> int: ...
    def pyiommufd_destroy(self, object_: FFI.CData, /) -> int: ...
    def pyiommufd_abandon(self, object_: FFI.CData, /) -> None: ...
    def pyiommufd_ioas_map(
        self,
        ioas: FFI.CData,
        piece: FFI.CData,
        flags: int,
        user_va: FFI.CData | bytes,
        length: int,
        iova: int,
        /,
    ) -> int: ...
    def pyiommufd_ioas_map_file(
        self,
        ioas: FFI.CData,
        piece: FFI.CData,
        flags: int,
        file: int,
        start: int,
        length: int,
        iova: int,
        /,
    ) -> int: ...
    def pyiommufd_ioas_copy(
        self,
        ioas: FFI.CData,
        pieces: FFI.CData,
        count: int,
        flags: int,
        source: FFI.CData,
        src_iova: int,
        length: int,
        dst_iova: int,
        changes: int,
        /,
    ) -> int: ...
    def pyiommufd_ioas_map_many(
        self,
        ioas: FFI.CData,
        pieces: FFI.CData,
        count: int,
        flags: int,
        memory: FFI.CData | bytes,
        done: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_ioas_unmap(self, piece: FFI.CData, /) -> int: ...
    def pyiommufd_ioas_unmap_many(self, pieces: FFI.CData, count: int, /) -> int: ...
    def pyiommufd_ioas_unmap_range(
        self,
        ioas: FFI.CData,
        iova: int,
        length: int,
        pieces: FFI.CData,
        count: int,
        changes: int,
        unmapped: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_ioas_unmap_left(self, ioas: FFI.CData, piece: FFI.CData, /) -> int: ...
    def pyiommufd_ioas_first_hole(
        self,
        ioas: FFI.CData,
        iova: int,
        length: int,
        hole: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_try_page_table(
        self,
        device: FFI.CData,
        ioas: FFI.CData,
        iova: int,
        length: int,
        dst_iova: int,
        /,
    ) -> int: ...
    def pyiommufd_bind(
        self,
        cdev: FFI.CData,
        device: FFI.CData,
        owner: FFI.CData,
        token: FFI.CData | bytes,
        /,
    ) -> int: ...
    def pyiommufd_attach(
        self,
        cdev: FFI.CData,
        table: FFI.CData,
        pasid: int,
        group_on: FFI.CData,
        attached: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_detach(self, cdev: FFI.CData, pasid: int, attached: FFI.CData, /) -> int: ...
    def pyiommufd_ioeventfd(
        self,
        cdev: FFI.CData,
        offset: int,
        width: int,
        value: int,
        eventfd: FFI.CData,
        on: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_set_irqs(
        self,
        cdev: FFI.CData,
        command: FFI.CData,
        eventfds: FFI.CData,
        count: int,
        /,
    ) -> int: ...
    def pyiommufd_window_new(self, /) -> FFI.CData: ...
    def pyiommufd_window_map(
        self,
        window: FFI.CData,
        file: FFI.CData,
        offset: int,
        length: int,
        readable: int,
        writeable: int,
        /,
    ) -> int: ...
    def pyiommufd_window_unmap(self, window: FFI.CData, /) -> int: ...
    def pyiommufd_window_forget(self, window: FFI.CData, /) -> None: ...
    def pyiommufd_window_mapped(self, window: FFI.CData, /) -> int: ...
    def pyiommufd_window_free(self, window: FFI.CData, /) -> None: ...
    def pyiommufd_window_read(self, window: FFI.CData, offset: int, width: int, /) -> int: ...
    def pyiommufd_window_read64(self, window: FFI.CData, offset: int, value: FFI.CData, /) -> int: ...
    def pyiommufd_window_write(self, window: FFI.CData, offset: int, width: int, value: int, /) -> int: ...
    def pyiommufd_window_copy_out(
        self,
        window: FFI.CData,
        offset: int,
        memory: FFI.CData,
        length: int,
        done: FFI.CData,
        /,
    ) -> int: ...
    def pyiommufd_window_copy_in(
        self,
        window: FFI.CData,
        offset: int,
        memory: FFI.CData | bytes,
        length: int,
        done: FFI.CData,
        /,
    ) -> int: ...

ffi: Final[_FFI]
lib: Final[_Lib]
