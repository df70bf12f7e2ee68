# syntax=docker/dockerfile:1
# Reveille's image: one static binary and the licence, nothing else.
#
#   docker build --tag registry.example.com/reveille:0.2.0 .
#
# Needs BuildKit (cache mounts). Builds for the platform it runs on: x86_64 or aarch64.

ARG RUST_IMAGE=docker.io/library/rust:1-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# The documentation of the library is a page of docs/.
COPY docs/ARCHITECTURE.md ./docs/
COPY src ./src
# glibc is linked in, so that the binary runs without any file beside it. That the target is named keeps the flag away from
# procedural macros, which cannot be static. The cache mounts keep dependencies between builds; what they hold is not in the
# image, so the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    set -eu; \
    target="$(uname -m)-unknown-linux-gnu"; \
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" --bin reveille; \
    install -D -m 0755 "target/$target/release/reveille" /out/reveille

# The image for the test cluster holds the same two files, and is built without any container engine.
FROM scratch
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Reveille" \
      org.opencontainers.image.description="Restore hooks for Kubernetes: mutating admission webhook and waiter" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/reveille /reveille
COPY LICENSE /licenses/LICENSE
USER 65532:65532
ENTRYPOINT ["/reveille"]
