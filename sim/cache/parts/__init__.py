"""Parts of a cache that methods change: what is held of each token (``codec``), which tokens are held (``tokens``).

A scenario's keys (:mod:`kvsim.scenario.codec`, :mod:`kvsim.scenario.tokens`) become small frozen objects that a manager
consults (:class:`kvsim.cache.manager.CacheConfig` has them). A part answers two questions and owns nothing:

- *bytes*: what a token, a request, a request at its peak takes (whole bytes, metadata and padding included);
- *kernels*: what writing, reading and changing it takes in a step, as columns (:mod:`kvsim.cost.work`) or forms of one size
  (:mod:`kvsim.cost.form`).

Decode steps compose. The token policy says what the batch holds, as spans (:class:`kvsim.cache.parts.span.Span`: so many
tokens in a share of layers and heads); a read selector may replace them by what is read of it; the codec turns each span
into the attention kernel of its form:

    held = tokens.held(batch, steps) -> spans     else one span with everything
    spans -> codec.read_work(num_seqs, span)      else decode_attention

A manager says which parts it takes (``CacheManager.parts``); :func:`kvsim.cache.load.load_manager` refuses the others.
"""
