"""What a trace gives before anything is simulated: lengths, arrivals, reuse, hits against capacity."""
