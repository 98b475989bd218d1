"""Memory that devices reach: address spaces and what is mapped in them."""
