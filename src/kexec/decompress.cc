#include "kexec/decompress.h"

#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace luo::kexec {
namespace {

using Packed = std::span<const std::byte>;

constexpr std::size_t kPiece = 256 * 1024;
constexpr std::uint64_t kMostOutput = std::uint64_t{1} << 30;
constexpr std::uint64_t kMostXzMemory = 160 << 20;
constexpr int kLargestZstdWindow = 27;  // 128 MiB: what zstd -22 --ultra takes, and a kernel's build uses that

/// What came out so far, and whether more is wanted.
class Output {
 public:
  explicit Output(const Sink& sink) : sink_{sink} {}
  /// True: go on.
  Result<bool> put(const std::byte* data, std::size_t size) {
    total_ += size;
    if (total_ > kMostOutput) return fail(EFBIG, "more than {} MiB come out of it", kMostOutput >> 20);
    return size == 0 || sink_({data, size});
  }

 private:
  const Sink& sink_;
  std::uint64_t total_ = 0;
};

std::unexpected<Error> cut_off(const char* how) { return fail(EBADMSG, "it is packed with {} and cut off", how); }
std::unexpected<Error> damaged(const char* how, std::string_view why) {
  return fail(EBADMSG, "it is packed with {} and damaged ({})", how, why);
}

Result<> gunzip(Packed in, Output& out) {
  constexpr int kGzip = 16;
  z_stream stream{};
  if (inflateInit2(&stream, kGzip + MAX_WBITS) != Z_OK) return fail(ENOMEM, "inflateInit2");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> end{&stream, inflateEnd};
  const auto piece = std::make_unique_for_overwrite<std::byte[]>(kPiece);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(in.data()));  // it is not written to
  stream.avail_in = static_cast<uInt>(std::min<std::size_t>(in.size(), UINT32_MAX));
  for (;;) {
    stream.next_out = reinterpret_cast<Bytef*>(piece.get());
    stream.avail_out = kPiece;
    const int code = inflate(&stream, Z_NO_FLUSH);
    const bool more = LUO_TRY(out.put(piece.get(), kPiece - stream.avail_out));
    if (code == Z_STREAM_END || !more) return {};
    if (code == Z_BUF_ERROR || (code == Z_OK && stream.avail_in == 0 && stream.avail_out != 0)) return cut_off("gzip");
    if (code == Z_MEM_ERROR) return fail(ENOMEM, "inflate");
    if (code != Z_OK) return damaged("gzip", stream.msg != nullptr ? stream.msg : "no gzip data");
  }
}

Result<> unlzma(Packed in, Output& out, bool alone) {
  const char* how = alone ? "lzma" : "xz";
  lzma_stream stream = LZMA_STREAM_INIT;
  if ((alone ? lzma_alone_decoder(&stream, kMostXzMemory) : lzma_stream_decoder(&stream, kMostXzMemory, 0)) != LZMA_OK)
    return fail(ENOMEM, "start to unpack {}", how);
  const std::unique_ptr<lzma_stream, void (*)(lzma_stream*)> end{&stream, lzma_end};
  const auto piece = std::make_unique_for_overwrite<std::byte[]>(kPiece);
  stream.next_in = reinterpret_cast<const std::uint8_t*>(in.data());
  stream.avail_in = in.size();
  for (;;) {
    stream.next_out = reinterpret_cast<std::uint8_t*>(piece.get());
    stream.avail_out = kPiece;
    const lzma_ret code = lzma_code(&stream, LZMA_RUN);
    const bool more = LUO_TRY(out.put(piece.get(), kPiece - stream.avail_out));
    if (code == LZMA_STREAM_END || !more) return {};
    if (code == LZMA_BUF_ERROR || (code == LZMA_OK && stream.avail_in == 0 && stream.avail_out != 0))
      return cut_off(how);
    if (code == LZMA_MEMLIMIT_ERROR) return fail(EFBIG, "it is packed with {} and wants more memory than it gets", how);
    if (code == LZMA_MEM_ERROR) return fail(ENOMEM, "unpack {}", how);
    if (code != LZMA_OK) return damaged(how, fmt::format("liblzma's error {}", static_cast<int>(code)));
  }
}

Result<> unzstd(Packed in, Output& out) {
  const std::unique_ptr<ZSTD_DStream, std::size_t (*)(ZSTD_DStream*)> stream{ZSTD_createDStream(), ZSTD_freeDStream};
  if (stream == nullptr ||
      ZSTD_isError(ZSTD_DCtx_setParameter(stream.get(), ZSTD_d_windowLogMax, kLargestZstdWindow)) != 0)
    return fail(ENOMEM, "start to unpack zstd");
  const auto piece = std::make_unique_for_overwrite<std::byte[]>(kPiece);
  ZSTD_inBuffer from{in.data(), in.size(), 0};
  for (;;) {
    ZSTD_outBuffer to{piece.get(), kPiece, 0};
    const std::size_t code = ZSTD_decompressStream(stream.get(), &to, &from);
    if (ZSTD_isError(code) != 0) return damaged("zstd", ZSTD_getErrorName(code));
    const bool more = LUO_TRY(out.put(piece.get(), to.pos));
    if (code == 0 || !more) return {};  // the end of the frame; a kernel has one
    if (from.pos == from.size && to.pos < to.size) return cut_off("zstd");
  }
}

/// The "legacy" format: a magic number, then blocks of at most 8 MiB, each behind its packed size.
Result<> unlz4(Packed in, Output& out) {
  constexpr std::size_t kMagic = 4, kSize = 4;
  constexpr int kBlock = 8 << 20;
  const auto block = std::make_unique_for_overwrite<std::byte[]>(kBlock);
  in = in.subspan(kMagic);
  while (in.size() > kSize) {  // at the end stand four bytes: how much it is unpacked
    std::uint32_t size = 0;
    for (std::size_t i = kSize; i-- > 0;) size = (size << 8) | std::to_integer<std::uint32_t>(in[i]);
    in = in.subspan(kSize);
    if (size > static_cast<std::uint32_t>(LZ4_COMPRESSBOUND(kBlock))) return damaged("lz4", "a block is too large");
    if (size > in.size()) return cut_off("lz4");
    const int n = LZ4_decompress_safe(reinterpret_cast<const char*>(in.data()), reinterpret_cast<char*>(block.get()),
                                      static_cast<int>(size), kBlock);
    if (n < 0) return damaged("lz4", "a block cannot be read");
    if (!LUO_TRY(out.put(block.get(), static_cast<std::size_t>(n)))) return {};
    in = in.subspan(size);
  }
  return {};
}

}  // namespace

Result<> decompress(Packed packed, const Sink& sink) {
  using namespace std::string_view_literals;
  const std::string_view text{reinterpret_cast<const char*>(packed.data()), packed.size()};
  Output out{sink};
  if (text.starts_with("\x1f\x8b"sv)) return gunzip(packed, out);
  if (text.starts_with("\xfd"
                       "7zXZ\0"sv))
    return unlzma(packed, out, false);
  if (text.starts_with("\x5d\0\0"sv)) return unlzma(packed, out, true);
  if (text.starts_with("\x28\xb5\x2f\xfd"sv)) return unzstd(packed, out);
  if (text.starts_with("\x02\x21\x4c\x18"sv)) return unlz4(packed, out);
  if (text.starts_with("BZh"sv)) return fail(EOPNOTSUPP, "it is packed with bzip2, which is not read here");
  if (text.starts_with("\x89LZO"sv)) return fail(EOPNOTSUPP, "it is packed with lzo, which is not read here");
  return fail(EOPNOTSUPP, "it is packed in a way that is not known here");
}

}  // namespace luo::kexec
