"""What proposes tokens, and the policy that decides how many."""
