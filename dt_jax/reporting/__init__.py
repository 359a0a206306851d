# SPDX-License-Identifier: Apache-2.0
"""Numbers to text, pictures, a page and a model card."""
