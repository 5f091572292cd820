"""Networks that respect an order, a mask or a Lipschitz bound."""
