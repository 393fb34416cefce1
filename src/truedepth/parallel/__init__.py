"""One model over several ranks: each holds a part of every stage, and sums go over all of them."""
