# SPDX-License-Identifier: Apache-2.0
"""The network and its Hugging Face form: fields and parameters; Flax stays inside."""
